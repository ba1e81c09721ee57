"""The network of a simulation: how long a message takes from one end to the other. Times in seconds, sizes in bytes.

A `Path` leads through several pipes (the worker's own line, its site's, the server's): bytes flow through all of them
at once, so the slowest decides, and each is busy for the others meanwhile. Then come latency and jitter. What TCP makes
of loss is delay: the pipe's rate is what Mathis et al. leave of it (`Link.bytes_per_s`), and for a message whose last
packets are lost a retransmission timeout. The order of messages on a path is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lightning_async.links.link import MSS_BYTES, RTO_S, Direction, Link
from lightning_async.links.pipe import Pipe

FRAME_BYTES = 9  # ZeroMQ's framing of one frame


class Path:
    """From one end to the other through `pipes`; `link` is the line whose latency, jitter and loss it has that way."""

    def __init__(self, pipes: Sequence[Pipe], link: Link, direction: Direction, rng: np.random.Generator) -> None:
        self._pipes, self._way, self._rng = tuple(pipes), link.way(direction), rng
        self._timeout_s = max(RTO_S, 2 * link.rtt_s)
        self._last = 0.0

    def arrival(self, size: int, now: float) -> float:
        """When a message of `size` bytes that is sent at `now` is there."""
        through = now
        for pipe in self._pipes:
            through = max(through, pipe.send(size, now))
        self._last = max(self._last, through + self._extra_s(size))
        return self._last

    def _extra_s(self, size: int) -> float:
        way, extra = self._way, self._way.latency_ms / 1000
        if way.jitter_ms:
            extra += self._rng.uniform(0.0, way.jitter_ms / 1000)
        tail = min(3, math.ceil(size / MSS_BYTES))  # packets whose loss no later one tells of
        if way.loss and self._rng.random() < 1 - (1 - way.loss) ** tail:
            extra += self._timeout_s
        return extra
