"""The network of a simulation: how long a message takes from one end to the other. Times in seconds, sizes in bytes.

A `Pipe` is one direction of a line: it passes bytes on in the order in which they came, at its rate, less during a
brownout. A `Path` leads from one end to the other through several pipes (the worker's own, its site's, the server's):
bytes flow through all of them at once, so the slowest decides, and each is busy for the others meanwhile. Then come
latency and jitter. What TCP makes of loss is delay: a rate that Mathis et al. (1997) give, MSS / RTT * sqrt(3 / 2 / p),
and for a message whose last packets are lost a retransmission timeout. The order of messages on a path is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_async.errors import ConfigError

MSS_BYTES = 1448
RTO_S = 0.2  # the shortest retransmission timeout of Linux
FRAME_BYTES = 9  # ZeroMQ's framing of one frame
MEGABIT = 1e6 / 8


def require(holds: bool, got: object, expected: str) -> None:
    """Raises ConfigError unless `holds`."""
    if not holds:
        raise ConfigError(f"got {got!r}, expected {expected}")


@dataclass(frozen=True, kw_only=True)
class Brownout:
    """Every `every_s` seconds, at a phase drawn by the seed, a line has `factor` of its rate for `lasts_s` seconds."""

    every_s: float
    lasts_s: float
    factor: float = 0.0

    def __post_init__(self) -> None:
        fine = 0 < self.lasts_s < self.every_s < math.inf and 0 <= self.factor <= 1
        require(fine, self, "0 < lasts_s < every_s and 0 <= factor <= 1")


@dataclass(frozen=True, kw_only=True)
class Link:
    """One end's line to the internet. `latency_ms` is one way, `jitter_ms` the most that is added to it, at random."""

    up_mbps: float = 1000.0
    down_mbps: float = 1000.0
    latency_ms: float = 1.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    brownout: Brownout | None = None

    def __post_init__(self) -> None:
        fine = min(self.up_mbps, self.down_mbps) > 0 and min(self.latency_ms, self.jitter_ms) >= 0 <= self.loss < 1
        require(fine, self, "rates > 0, latency and jitter >= 0, 0 <= loss < 1")

    @property
    def rtt_s(self) -> float:
        """There and back on an idle line, seconds."""
        return (2 * self.latency_ms + self.jitter_ms) / 1000

    def bytes_per_s(self, direction: str) -> float:
        """What TCP gets out of the line, "up" or "down"."""
        rate = (self.up_mbps if direction == "up" else self.down_mbps) * MEGABIT
        return min(rate, MSS_BYTES / max(self.rtt_s, 1e-3) * math.sqrt(1.5 / self.loss)) if self.loss else rate


class Pipe:
    """One direction of a line. `phase_s`: when the first brownout begins."""

    def __init__(self, bytes_per_s: float, brownout: Brownout | None = None, phase_s: float = 0.0) -> None:
        self._rate, self._brownout, self._phase = bytes_per_s, brownout, phase_s
        self._free_at = 0.0

    def send(self, size: float, now: float) -> float:
        """When the last of `size` bytes that came at `now` is through."""
        self._free_at = self._through(max(now, self._free_at), size)
        return self._free_at

    def _through(self, begin: float, size: float) -> float:
        if self._brownout is None:
            return begin + size / self._rate
        at = begin
        while True:
            rate, until = self._piece(at)
            if size <= rate * (until - at):
                return at + (size / rate if size else 0.0)
            size -= rate * (until - at)
            at = until

    def _piece(self, at: float) -> tuple[float, float]:
        """(rate, until when it holds) of the line at time `at`."""
        out = self._brownout
        assert out is not None
        turn = math.floor((at - self._phase) / out.every_s)
        begin = self._phase + turn * out.every_s
        if at < begin + out.lasts_s:
            return self._rate * out.factor, begin + out.lasts_s
        return self._rate, begin + out.every_s


class Path:
    """From one end to the other through `pipes`; `link` is the line whose latency, jitter and loss it has."""

    def __init__(self, pipes: Sequence[Pipe], link: Link, rng: np.random.Generator) -> None:
        self._pipes, self._link, self._rng = tuple(pipes), link, rng
        self._last = 0.0

    def arrival(self, size: int, now: float) -> float:
        """When a message of `size` bytes that is sent at `now` is there."""
        through = now
        for pipe in self._pipes:
            through = max(through, pipe.send(size, now))
        self._last = max(self._last, through + self._extra_s(size))
        return self._last

    def _extra_s(self, size: int) -> float:
        link, extra = self._link, self._link.latency_ms / 1000
        if link.jitter_ms:
            extra += self._rng.uniform(0.0, link.jitter_ms / 1000)
        tail = min(3, math.ceil(size / MSS_BYTES))  # packets whose loss no later one tells of
        if link.loss and self._rng.random() < 1 - (1 - link.loss) ** tail:
            extra += max(RTO_S, 2 * link.rtt_s)
        return extra
