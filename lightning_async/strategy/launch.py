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
import threading
import time
import uuid
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
    _launched = Launched(address or _free_address(), uuid.uuid4().hex[:8])
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


def _free_address() -> str:
    """A loopback address nobody listens on; the server binds it in a moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def group_of(environment: Any, size: int) -> str:
    """The name of this process's launch group, the same for all its processes and for no other."""
    given = os.environ.get(GROUP) or (_launched.group if _launched is not None else "")
    if given:
        return given
    for key in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "LSB_JOBID"):
        if size > 1 and os.environ.get(key) not in (None, "", "none"):
            return f"{key}-{os.environ[key]}"
    if size > 1 and environment is not None:
        # The processes of one torchrun have one parent; an address and a port are reused by every later job.
        return f"{socket.gethostname()}-{environment.main_port}-{os.getppid()}"
    return uuid.uuid4().hex[:8]
