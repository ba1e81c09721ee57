"""What a line to the internet is like: rates, latency, jitter, loss, brownouts, disconnects. Data without behaviour.

The simulator (simulation/network.py), the shaping proxy (transport/shaping.py), the planner and `netem --print-tc` all
read this one description. A field holds for both directions; `up_` and `down_` before its name say otherwise for one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from lightning_async.errors import ConfigError
from lightning_async.spec import call

MSS_BYTES = 1448  # of a TCP segment on Ethernet
RTO_S = 0.2  # the shortest retransmission timeout of Linux
MEGABIT = 1e6 / 8

Direction = Literal["up", "down"]


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

    @property
    def spec(self) -> str:
        return call("cycle", every_s=self.every_s, lasts_s=self.lasts_s, factor=self.factor)


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """When every connection over a line breaks, and what was under way in it is lost.

    Every `every_s` seconds on average, exponentially; and `at_s` seconds after the beginning; and when `at_mb` million
    bytes have passed, both directions together. For `away_s` seconds after a cut nobody gets through.
    """

    every_s: float | None = None
    at_s: tuple[float, ...] = ()
    at_mb: tuple[float, ...] = ()
    away_s: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "at_s", tuple(sorted(self.at_s)))
        object.__setattr__(self, "at_mb", tuple(sorted(self.at_mb)))
        times = (*self.at_s, *self.at_mb, self.away_s)
        fine = all(0 <= x < math.inf for x in times) and (self.every_s is None or 0 < self.every_s < math.inf)
        require(fine, self, "every_s > 0, and the other times and amounts >= 0")

    @property
    def spec(self) -> str:
        return call("cuts", **_differing(self))


@dataclass(frozen=True)
class Way:
    """One direction of a line; `latency_ms` is one way, `jitter_ms` the most that is added to it, at random."""

    mbps: float
    latency_ms: float
    jitter_ms: float
    loss: float
    duplicate: float

    @property
    def bytes_per_s(self) -> float:
        """Of the line, whatever TCP gets out of it."""
        return self.mbps * MEGABIT


@dataclass(frozen=True, kw_only=True)
class Link:
    """One end's line to the internet, as that end sees it: up leads away from it.

    Args:
        up_mbps: rate away from this end, million bits per second.
        down_mbps: rate towards it.
        latency_ms: one way.
        jitter_ms: the most that is added to the latency, uniformly; the order of one connection's bytes is kept.
        loss: share of TCP's segments that are lost and sent again.
        duplicate: share of segments that the line carries twice.
        brownout: times of a smaller rate, for both directions at once.
        cuts: when connections break.
        up_latency_ms: in place of latency_ms for one direction; the others likewise.
    """

    up_mbps: float = 1000.0
    down_mbps: float = 1000.0
    latency_ms: float = 1.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    brownout: Brownout | None = None
    cuts: Cuts | None = None
    up_latency_ms: float | None = None
    up_jitter_ms: float | None = None
    up_loss: float | None = None
    up_duplicate: float | None = None
    down_latency_ms: float | None = None
    down_jitter_ms: float | None = None
    down_loss: float | None = None
    down_duplicate: float | None = None

    def __post_init__(self) -> None:
        kinds = isinstance(self.brownout, Brownout | None) and isinstance(self.cuts, Cuts | None)
        require(kinds, self, "brownout=cycle(every_s=..., lasts_s=...) and cuts=cuts(...), or none of them")
        for way in (self.way("up"), self.way("down")):
            finite = 0 < way.mbps < math.inf and 0 <= way.latency_ms < math.inf and 0 <= way.jitter_ms < math.inf
            fine = finite and 0 <= way.loss < 1 and 0 <= way.duplicate < 1
            require(fine, self, "rates > 0, latency and jitter >= 0, 0 <= loss and duplicate < 1")

    @property
    def spec(self) -> str:
        """The text form, without what is as usual: `link(up_mbps=2.0, latency_ms=40.0)`."""
        return call("link", **_differing(self))

    def way(self, direction: Direction) -> Way:
        """What holds in one direction."""
        return Way(
            self.up_mbps if direction == "up" else self.down_mbps,
            *(self._own(direction, name) for name in ("latency_ms", "jitter_ms", "loss", "duplicate")),
        )

    def _own(self, direction: Direction, name: str) -> float:
        own: float | None = getattr(self, f"{direction}_{name}")
        common: float = getattr(self, name)
        return common if own is None else own

    @property
    def rtt_s(self) -> float:
        """There and back on an idle line, on average, seconds."""
        ways = (self.way("up"), self.way("down"))
        return sum(way.latency_ms + way.jitter_ms / 2 for way in ways) / 1000

    def bytes_per_s(self, direction: Direction) -> float:
        """What one TCP connection gets out of the line: its rate without what is sent twice or, by Mathis et al.
        (1997), what loss leaves of it, MSS / RTT * sqrt(3 / 2 / p), whichever is less."""
        way = self.way(direction)
        once = way.bytes_per_s / (1.0 + way.loss + way.duplicate)
        if not way.loss:
            return once
        return min(once, MSS_BYTES / max(self.rtt_s, 1e-3) * math.sqrt(1.5 / way.loss))


class _Written:
    """A value whose repr is its spec, for `spec.call`."""

    def __init__(self, spec: str) -> None:
        self._spec = spec

    def __repr__(self) -> str:
        return self._spec


def _differing(link: Link | Cuts) -> dict[str, object]:
    """The fields whose value is not the default."""
    values = {field.name: getattr(link, field.name) for field in fields(link)}
    usual = {field.name: field.default for field in fields(link)}
    return {
        name: _Written(value.spec) if isinstance(value, Brownout | Cuts) else value
        for name, value in values.items()
        if value != usual[name]
    }
