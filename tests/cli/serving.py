"""A real server in a thread, begun as `lightning-async serve` begins one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from eventually import ENOUGH_S

from lightning_async.cli.hosting import Hosted, host
from lightning_async.cli.place import Place
from lightning_async.config import RunConfig


@contextlib.contextmanager
def served(config: RunConfig, keys: Path | None = None, state: Path | None = None) -> Iterator[Hosted]:
    """It, on a loopback port, until the block ends; then it has ended, too."""
    ending: list[str] = []
    folders = {"keys": None if keys is None else str(keys), "state_dir": None if state is None else str(state)}
    hosted = host(config, Place(address="tcp://127.0.0.1:0", **folders))
    thread = threading.Thread(target=hosted.serve, args=(lambda: "".join(ending), lambda: True), daemon=True)
    with hosted:
        thread.start()
        try:
            yield hosted
        finally:
            ending.append("done")
            hosted.service.wake()
            thread.join(ENOUGH_S)
        assert not thread.is_alive()
