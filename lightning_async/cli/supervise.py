"""`serve --supervise`: this process starts the server, and starts it again when it has died, as the same command.

It ends when the server does by itself (a run that is over, a configuration that is refused) and when it is told to: a
signal goes on to the server, which is in a session of its own, so that a terminal's Ctrl+C reaches it once. A server
whose supervisor has died ends in order; what it has acknowledged is in its state_dir either way.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from lightning_async.errors import ConfigError, NetworkError
from lightning_async.restarts import Restarts, own_group

OVER, REFUSED = 0, 2  # exit codes of a server that there is no point in starting again
SIGNALS = tuple(number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)))
log = logging.getLogger(__name__)


def check(address: str, state_dir: str | None) -> None:
    """Raises ConfigError for a server that nobody could find again, or that would have lost its run."""
    if state_dir is None:
        raise ConfigError("--supervise needs --state-dir: a server without one dies with its run")
    if address.endswith(":0"):
        raise ConfigError(
            f"--supervise needs a port in --address, got {address}: workers look for a server that was started "
            "again where the last one was"
        )


def command_of(words: Sequence[str]) -> list[str]:
    """The command of a server that this process supervises; `words`: our own arguments."""
    return [sys.executable, "-m", "lightning_async", *words, "--supervised-by", str(os.getpid())]


class Watch:
    """Runs `command`, again and again where that helps."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._asked: deque[int] = deque()  # signals that the server has not been given yet
        self._told = threading.Event()  # one has come at all
        self._server: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """The exit code. Raises NetworkError when it dies too often."""
        restarts = Restarts()
        with self._listening():
            while True:
                code = self._life()
                if self._told.is_set() or code in (OVER, REFUSED):
                    return code if code >= 0 else 128 - code
                pause_s = restarts.pause_s(time.monotonic())
                if pause_s is None:
                    raise NetworkError(restarts.too_often("the server", code))
                log.warning("the server has ended with code %d; starting it again in %.1f s", code, pause_s)
                if self._told.wait(pause_s):
                    return 128 + self._asked[0]
                restarts.note(time.monotonic())

    def _life(self) -> int:
        """The exit code of one server, minus the signal that killed it."""
        with subprocess.Popen(self._command, **own_group()) as server:
            self._server = server
            try:
                self._pass_on()
                return server.wait()
            finally:
                self._server = None
                server.kill()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._signalled) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._asked.append(number)
        self._told.set()
        self._pass_on()

    def _pass_on(self) -> None:
        """Each signal once, also when another one comes meanwhile."""
        with suppress(IndexError, ProcessLookupError):
            while self._server is not None:
                self._server.send_signal(self._asked.popleft())
