"""Sees to it that the embedded server is there: one that dies is started again, where it has kept its state.

A thread looks after it, since training may be inside a step or a validation for minutes. Workers notice nothing but a
pause: the new one listens at the same address and goes on with everything that was acknowledged. A server that dies
again and again, or one without a state_dir, with which the run has died too, is an error at the next `check`, and all
others who ask for it are told the same (last_words.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from lightning_async.errors import AsyncWANError, NetworkError
from lightning_async.restarts import Restarts
from lightning_async.strategy.embedded import EmbeddedServer
from lightning_async.strategy.last_words import LastWords

LOOK_S = 0.5
log = logging.getLogger("lightning_async")


class Supervisor:
    """An embedded server until `quit`.

    Args:
        begin: starts one at an address, as `EmbeddedServer.begin`.
        address: for the first; the real one, with its port, for all that follow.
        again: whether one that has died is to be started again.
    """

    def __init__(self, begin: Callable[[str], EmbeddedServer], address: str, again: bool) -> None:
        self._begin, self._again = begin, again
        self._server = begin(address)
        self._restarts = Restarts()
        self._error: AsyncWANError | None = None
        self._words: LastWords | None = None  # once it is gone for good
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lightning-async-supervisor", daemon=True)
        self.address = ""

    def wait_until_ready(self) -> str:
        """The address where it listens. Raises as `EmbeddedServer.wait_until_ready`."""
        if not self.address:
            self._server.wait_until_ready()
            self.address = self._server.address
            self._thread.start()
        return self.address

    def check(self) -> None:
        """Raises NetworkError once there is no server any more."""
        if self._error is not None:
            raise self._error
        if not self.address and self._server.poll() is not None:
            self._server.wait_until_ready()  # says why not

    def quit(self) -> None:
        """End it. Afterwards its process and its port are gone. Idempotent."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._words is not None:
            self._words.close()
        self._server.quit()

    def tell(self, ended: Callable[[], bool], hurry: Callable[[], bool]) -> None:
        """Where it is gone for good: give the workers the time to learn that (`LastWords.wait`)."""
        if self._words is not None:
            self._words.wait(ended, hurry)

    def _watch(self) -> None:
        try:
            while not self._closed.wait(LOOK_S):
                code = self._server.poll()
                if code is not None:
                    self._replace(code)
        except AsyncWANError as error:
            self._lose(error)
        except OSError as error:
            self._lose(NetworkError(f"the embedded server cannot be started again: {error}"))

    def _lose(self, error: AsyncWANError) -> None:
        log.error("%s\nThe other workers are told, which takes a few seconds", error)
        self._words = LastWords(self.address, str(error))
        self._error = error

    def _replace(self, code: int) -> None:
        """Start another server, after a pause. Raises NetworkError when that is no use."""
        said = self._server.tail()
        if not self._again:
            raise NetworkError(
                f"the embedded server has ended with code {code}, and what it held with it; start again, with "
                f"state_dir= so that a server which dies is started again. It said last:\n{said}"
            )
        pause_s = self._restarts.pause_s(time.monotonic())
        if pause_s is None:
            raise NetworkError(f"{self._restarts.too_often('the embedded server', code)}. It said last:\n{said}")
        log.warning("the embedded server has ended with code %d; starting it again in %.1f s\n%s", code, pause_s, said)
        if not self._closed.wait(pause_s):
            self._restarts.note(time.monotonic())
            self._server.quit()
            self._server = self._begin(self.address)
