"""A server in a thread of this process: for tests, notebooks and plain scripts that want no second process."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from lightning_async.config import RunConfig
from lightning_async.errors import NetworkError
from lightning_async.server.coordinator import Coordinator
from lightning_async.server.private import Private, Validation
from lightning_async.server.service import Service
from lightning_async.telemetry import Sink
from lightning_async.transport import listen
from lightning_async.transport.several import several


class ServerThread:
    """`with ServerThread(config) as server: ... server.address`. After `close` the thread and the port are gone.

    `validation` is what zeno judges by (server/private.py); `keys` the folder of a server's keys, also for loopback.
    """

    def __init__(
        self,
        config: RunConfig,
        address: str = "tcp://127.0.0.1:0",
        sinks: Iterable[Sink] = (),
        validation: Validation | None = None,
        keys: Path | None = None,
    ) -> None:
        private = Private(secrets.randbits(62), validation)
        self.coordinator = Coordinator(config, "local", private, secrets.token_hex(16))
        options = {} if keys is None else {"keys": keys}
        doors = [listen(each, **(options if each.startswith("tcp://") else {})) for each in address.split(",")]
        self._service = Service(self.coordinator, several(doors), sinks)
        self.address = self._service.address
        self._why = ""
        self._thread = threading.Thread(target=self._run, name="lightning-async-server", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return repr(self.coordinator)

    def _run(self) -> None:
        try:
            self._service.serve(lambda: self._why)
        finally:
            self._service.close()

    def pardon(self, worker: str) -> None:
        """End the quarantine of a worker. Raises ConfigError when it is in none, TimeoutError when the thread hangs."""
        self._service.pardon(worker).result(timeout=15.0)

    def close(self, why: str = "closed") -> None:
        """Stop serving. Raises NetworkError if the thread does not end. Idempotent."""
        self._why = why
        if self._thread.is_alive():
            self._service.wake()
        self._thread.join(timeout=15.0)
        if self._thread.is_alive():
            raise NetworkError("the server's thread did not end within 15 s")

    def __enter__(self) -> ServerThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
