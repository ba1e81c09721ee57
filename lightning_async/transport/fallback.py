"""A connection that changes over: it dials one way, and another when nobody answers there.

Rule of this file: until the first message comes nothing is lost by the change, because what was sent is kept and said
again; from then on the way stays, and when it dies its owner dials anew, which begins with the first way again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from lightning_async.transport.base import Connection, Frame, Traffic

PATIENCE_S = 8.0  # with the first way; less than what a worker's link waits before it dials anew
log = logging.getLogger(__name__)

Dial = Callable[[], Connection]


class Fallback(Connection):
    """`first` and `second` dial; `names` are what people call the two ways."""

    def __init__(
        self,
        first: Dial,
        second: Dial,
        names: tuple[str, str],
        patience_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._current, self._second, self._names, self._clock = first(), second, names, clock
        self._until: float | None = clock() + (patience_s or PATIENCE_S)  # None: the way is chosen
        self._kept: list[list[Frame]] = []
        self._before = Traffic()

    def __repr__(self) -> str:
        return f"<Fallback {self._current!r}>"

    def send(self, frames: Sequence[Frame]) -> None:
        self._current.send(frames)
        if self._until is not None:
            self._kept.append(list(frames))

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        if self._until is None:
            return self._current.receive(timeout_s)
        left = self._until - self._clock()
        message = self._current.receive(max(0.0, min(timeout_s, left)))
        if message is not None:
            self._until, self._kept = None, []
        elif self._clock() >= self._until:
            self._change_over()
        self.trouble = self._current.trouble
        return message

    def _change_over(self) -> None:
        log.warning(
            "no answer from %s (%s); going on over %s until this worker joins again",
            self._names[0],
            self._current.trouble or "nothing came at all",
            self._names[1],
        )
        self._before = self.traffic()
        self._current.close()
        self._current = self._second()
        self._until = None
        for frames in self._kept:
            self._current.send(frames)
        self._kept = []

    def wake(self) -> None:
        self._current.wake()

    def traffic(self) -> Traffic:
        now, before = self._current.traffic(), self._before
        return Traffic(before.sent_bytes + now.sent_bytes, before.received_bytes + now.received_bytes)

    def close(self) -> None:
        self._current.close()
