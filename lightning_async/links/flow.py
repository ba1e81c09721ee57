"""What TCP makes of a line, in virtual time: (bytes, now) -> when they arrive. No socket, no clock, no thread.

A `Lane` is one direction of a line, with one queue for all connections that share it; a `Flow` is one connection's
bytes in it. Bytes pass the lane's pipe at its rate, in order of arrival, then come latency and jitter. What the line
loses or duplicates no reader ever sees, since TCP repairs it; what the reader sees is time:

- a lost segment takes the pipe a second time and arrives one round trip later (by fast retransmission) or, when
  nothing follows that would tell of the loss, a timeout later; everything behind it in its connection waits for it;
- the connection's window halves, and grows again by one segment in a round trip (Reno), which holds it to about what
  Mathis et al. (1997) give. It begins at their mean, and without loss no window is modelled: slow start is left out;
- a duplicated segment takes the pipe twice.

Segments between two losses are drawn at once (geometrically), so a piece of any size costs the same.
"""

from __future__ import annotations

import math
import random

from lightning_async.links.link import MSS_BYTES, RTO_S, Direction, Link
from lightning_async.links.pipe import Pipe

LEAST_WINDOW = 2.0  # segments


class Lane:
    """One direction of `link`. The same seed gives the same line."""

    def __init__(self, link: Link, direction: Direction, seed: int = 0, began: float = 0.0) -> None:
        self.way, self.rtt_s = link.way(direction), max(link.rtt_s, 1e-3)
        self.random = random.Random(f"{seed}/{direction}")
        out = link.brownout
        phase = random.Random(f"{seed}/brownout").uniform(0.0, out.every_s) if out is not None else 0.0
        self.pipe = Pipe(self.way.bytes_per_s, out, began + phase)
        self.lost = self.doubled = 0  # segments so far

    def flow(self) -> Flow:
        """One more connection."""
        return Flow(self)


class Chance:
    """How many of some segments something happens to, each with probability `p`."""

    def __init__(self, p: float, source: random.Random) -> None:
        self._p, self._random = p, source
        self._left = self._draw()

    def among(self, segments: int) -> int:
        hit = 0
        while self._left < segments:
            segments -= int(self._left) + 1
            self._left = self._draw()
            hit += 1
        self._left -= segments
        return hit

    def _draw(self) -> float:
        """Segments until the next one that it happens to."""
        return math.floor(math.log(1.0 - self._random.random()) / math.log1p(-self._p)) if self._p else math.inf


class Flow:
    """The bytes of one connection in a lane."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._losses = Chance(lane.way.loss, lane.random)
        self._doubles = Chance(lane.way.duplicate, lane.random)
        self._window = max(LEAST_WINDOW, math.sqrt(1.5 / lane.way.loss)) if lane.way.loss else math.inf
        self._largest = max(
            10.0, 2 * lane.way.bytes_per_s * lane.rtt_s / MSS_BYTES
        )  # what fills the line and its queue
        self._reduced_until = -math.inf  # losses of one round trip count once
        self._last = 0.0
        self.ready_at = 0.0  # before this the window takes no more

    def send(self, size: int, now: float, last: bool = False) -> float:
        """When `size` bytes that are sent at `now`, not before `ready_at`, are there.

        `last`: nothing more is waiting to be sent behind them.
        """
        lane, segments = self._lane, math.ceil(size / MSS_BYTES)
        lost, doubled = self._losses.among(segments), self._doubles.among(segments)
        lane.lost, lane.doubled = lane.lost + lost, lane.doubled + doubled
        again = (lost + doubled) / segments if segments else 0.0
        through = lane.pipe.send(size * (1.0 + again), now)
        self._pace(size, segments, lost, now)
        extra = (lane.way.latency_ms + lane.random.uniform(0.0, lane.way.jitter_ms)) / 1000
        self._last = max(self._last, through + extra + self._repair_s(lost, last))
        return self._last

    def _repair_s(self, lost: int, last: bool) -> float:
        """Until what was lost has come again, which may be lost in its turn."""
        if not lost:
            return 0.0
        timeout_s = max(RTO_S, 2 * self._lane.rtt_s)
        took = timeout_s if last else self._lane.rtt_s
        while self._lane.random.random() < self._lane.way.loss:
            took += timeout_s
        return took

    def _pace(self, size: int, segments: int, lost: int, now: float) -> None:
        if math.isinf(self._window):
            return
        rtt_s = self._lane.rtt_s
        self.ready_at = max(self.ready_at, now - rtt_s) + size * rtt_s / (self._window * MSS_BYTES)
        if lost and now >= self._reduced_until:
            self._window = max(LEAST_WINDOW, self._window / 2)
            self._reduced_until = now + rtt_s
        elif not lost:
            self._window = min(self._window + segments / self._window, self._largest)
