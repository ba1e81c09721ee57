"""What holds for every test: one torch thread, and nothing left behind.

A test that ends with a thread, a socket or another file descriptor, a child process, a place in the memory transport, a
level of logging or an environment variable that it did not find fails. What is being shut down gets a moment; what a
fixture of a wider scope holds was there before.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from children import Children
from eventually import ENOUGH_S
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from keyring import Keyring

GRACE_S = 30.0  # for threads and sockets that are on their way out, on a machine that is busy
PROC = Path("/proc/self")
OURS = ("root", "lightning_async")  # loggers
OF_LIBRARIES = ("PYTEST_", "KMP_", "OMP_", "TORCH", "CUDA_", "NUMBA_", "TOKENIZERS_", "TRITON_")  # set on import
OF_MULTIPROCESSING = ("resource_tracker", "forkserver")  # helper processes that live as long as the interpreter

torch.set_num_threads(1)
settings.register_profile(
    "here",
    deadline=None,
    max_examples=100,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],  # of the machine, not of the strategy
)
settings.load_profile("here")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell's background job; our children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _zmq_collector() -> None:
    """pyzmq starts one thread per process with the first frame that is not copied, and keeps it."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.PAIR) as left, context.socket(zmq.PAIR) as right:
        left.bind("inproc://warm")
        right.connect("inproc://warm")
        left.send(bytes(2**17), copy=False)
        right.recv()
    deadline = time.monotonic() + GRACE_S
    while PROC.exists() and not _named("Reaper", "IO") and time.monotonic() < deadline:
        threading.Event().wait(0.01)  # a thread that was just started has no name of its own yet


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = {name: look() for name, look in LOOKS.items()}
    yield
    left = _left(before)
    deadline = time.monotonic() + GRACE_S
    while left and time.monotonic() < deadline:
        gc.collect()
        threading.Event().wait(0.02)
        left = _left(before)
    if left:
        pytest.fail(f"left behind: {'; '.join(left)}", pytrace=False)


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    changed = sorted(
        name
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name) and not name.startswith(OF_LIBRARIES)
    )
    if changed:
        for name in changed:
            os.environ.pop(name, None)
            os.environ.update({name: before[name]} if name in before else {})
        pytest.fail(f"environment changed: {', '.join(changed)}; use monkeypatch", pytrace=False)


@pytest.fixture
def children() -> Iterator[Children]:
    """Where a test starts processes; they end with it, also when it fails."""
    made = Children()
    yield made
    made.end()


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keyring:
    """A server's keys; those of whoever runs the tests are not found."""
    from keyring import Keyring

    from lightning_async.transport.keys import VARIABLE

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(VARIABLE, raising=False)
    return Keyring(tmp_path / "server")


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers leave only with the server's answer, so that the server knows it, however busy the machine is."""
    from lightning_async.worker import Engine

    close = Engine.close
    monkeypatch.setattr(Engine, "close", lambda self, why="done", goodbye_s=ENOUGH_S: close(self, why, goodbye_s))


def _left(before: dict[str, set[str]]) -> list[str]:
    return [f"{name} {item}" for name, look in LOOKS.items() for item in sorted(look() - before[name])]


def _threads() -> set[str]:
    return {f"{thread.name} ({thread.ident})" for thread in threading.enumerate() if thread.is_alive()}


def _named(*kinds: str) -> bool:
    """Whether there is a ZeroMQ thread of each of these kinds."""
    found = _sockets_threads()
    return all(any(kind in thread for thread in found) for kind in kinds)


def _sockets_threads() -> set[str]:
    """The background threads of ZeroMQ contexts, which Python does not know."""
    found = set()
    for task in (PROC / "task").iterdir() if PROC.exists() else ():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:  # it ended meanwhile
            continue
        if name.startswith("ZMQbg"):
            found.add(f"{name} ({task.name})")
    return found


def _descriptors() -> set[str]:
    found = set()
    for entry in os.scandir(PROC / "fd") if PROC.exists() else ():
        try:
            target = os.readlink(entry.path)
        except OSError:  # the descriptor of this very scan
            continue
        if not target.startswith((str(Path(f"/proc/{os.getpid()}")), "/dev/")):
            found.add(f"{entry.name} -> {target}")
    return found


def _children() -> set[str]:
    found = set()
    for task in (PROC / "task").iterdir() if PROC.exists() else ():
        try:
            pids = (task / "children").read_text().split()
        except OSError:
            continue
        found |= {f"{pid} ({command})" for pid in pids if (command := _command(pid)) is not None}
    return found


def _command(pid: str) -> str | None:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    return None if any(name in command for name in OF_MULTIPROCESSING) else command[:100] or "ended, not waited for"


def _levels() -> set[str]:
    """What is logged; a test that changes it makes later ones miss what they look for."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    ours = [one for one in loggers if isinstance(one, logging.Logger) and one.name.startswith(OURS) and one.level]
    return {f"of {one.name}: {one.level}" for one in ours} | {f"of nobody: {logging.root.manager.disable}"}


def _places() -> set[str]:
    from lightning_async.transport import memory

    return set(memory._exchanges)


LOOKS: dict[str, Callable[[], set[str]]] = {
    "thread": _threads,
    "ZeroMQ thread": _sockets_threads,
    "descriptor": _descriptors,
    "child process": _children,
    "level of logging": _levels,
    "memory://": _places,
}
