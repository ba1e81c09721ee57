"""Launch groups: the processes that one script started, and the address at which their server is.

Rank 0 starts the others by running the same script again (no fork, no pickling). What they need to find each other is
three environment variables. A process that neither launched nor was launched is a group of its own.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

SERVER = "LIGHTNING_ASYNC_SERVER"
GROUP = "LIGHTNING_ASYNC_GROUP"
PARENT = "LIGHTNING_ASYNC_PARENT"
LOOK_S = 0.3  # how often a child looks whether rank 0 is still there
END_S = 5.0  # how long a process that was asked to end may take
log = logging.getLogger("lightning_async")


@dataclass(frozen=True)
class Launched:
    """What this process told the children that it started."""

    address: str
    group: str
    held: int | None = None  # a descriptor that keeps other programs from that port, for as long as this one lives


_launched: Launched | None = None  # by this process: a later Trainer of the same script uses the same port


def launched() -> Launched | None:
    """What the children of this process were told; None when it has none."""
    return _launched


def parent_gone() -> bool:
    """Whether this process was started by a rank 0 that is no more."""
    parent = os.environ.get(PARENT)
    return parent is not None and parent.isdigit() and os.name == "posix" and os.getppid() != int(parent)


class Watch:
    """While it is open, a process that rank 0 has started ends when rank 0 has died: its run died with it."""

    def __init__(self) -> None:
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="lightning-async-parent", daemon=True)
        if PARENT in os.environ:
            self._thread.start()

    def close(self) -> None:
        """End the watch. Idempotent."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _look(self) -> None:
        while not self._closed.wait(LOOK_S):
            if parent_gone():
                log.error("rank 0 has died, and the run's server with it; this process ends too")
                os.kill(os.getpid(), signal.SIGTERM)
                if not self._closed.wait(END_S):
                    os.kill(os.getpid(), signal.SIGKILL)
                return


def reap(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until all have ended; what has not after END_S is killed."""
    deadline = time.monotonic() + END_S
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def told(address: str, environment: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """While children are started: the variables that tell them where the server will be, and whose they are."""
    global _launched
    group = uuid.uuid4().hex[:8]
    if _launched is not None and _launched.held is not None:
        os.close(_launched.held)
    _launched = Launched(address, group) if address else _with_port(group)
    told_now = {SERVER: _launched.address, GROUP: _launched.group, PARENT: str(os.getpid())}
    before = {key: environment.get(key) for key in told_now}
    environment.update(told_now)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                environment.pop(key, None)
            else:
                environment[key] = value


def _with_port(group: str) -> Launched:
    """A launch whose server will listen at a free loopback port, in a moment and again in every later fit.

    Linux lets a socket that does not listen keep a port for another that is bound to it with SO_REUSEADDR, as a server
    is; elsewhere the port is free until then, and a program that takes it meanwhile is an error of the server.
    """
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(os.name == "posix"))
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        return Launched(address, group, free.detach() if sys.platform == "linux" else None)
