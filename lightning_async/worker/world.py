"""Where a worker lives: its clock, its way to a server, and who carries the courier on while training goes on.

The real world has a monotonic clock, sockets and a thread. A simulation gives its own three, and everything else of a
worker is the same.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from lightning_async.transport import connect
from lightning_async.transport.base import Connection

SLICE_S = 0.2  # the longest the thread that trains blocks without looking up
PUMP_S = 0.1


class Runner(ABC):
    """Calls a courier's `turn`, and lets the side that trains wait for what it changes."""

    @abstractmethod
    def start(self, turn: Callable[[float], bool], due_at: Callable[[], float]) -> None:
        """From now on call `turn(longest_block_s)` again and again, until it returns False.

        Who does not block in it calls it when something has come, or at `due_at()` on the world's clock.
        """

    @abstractmethod
    def changed(self) -> None:
        """Something may have come true that `pause` waits for. Either side calls it."""

    @abstractmethod
    def pause(self, over: Callable[[], bool], timeout_s: float) -> None:
        """Unless `over()`, the side that trains waits for `changed`, for `timeout_s` at most; may return early."""

    @property
    @abstractmethod
    def started(self) -> bool:
        """Whether `start` was called."""

    @abstractmethod
    def join(self, timeout_s: float) -> bool:
        """Wait until `turn` has returned False; whether it has."""


class InThread(Runner):
    """A thread of its own."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self, turn: Callable[[float], bool], due_at: Callable[[], float]) -> None:
        def run() -> None:
            while turn(PUMP_S):
                pass

        self._thread = threading.Thread(target=run, name="lightning-async-courier", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def pause(self, over: Callable[[], bool], timeout_s: float) -> None:
        with self._changed:
            if not over():
                self._changed.wait(min(SLICE_S, timeout_s))  # in slices, so that signal handlers run

    @property
    def started(self) -> bool:
        return self._thread is not None

    def join(self, timeout_s: float) -> bool:
        assert self._thread is not None
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


@dataclass(frozen=True)
class World:
    """`clock` gives seconds that never go back; `connect` dials an address, with options of its transport; `runner`
    makes a Runner for a courier."""

    clock: Callable[[], float] = time.monotonic
    connect: Callable[..., Connection] = connect
    runner: Callable[[], Runner] = InThread


REAL = World()
