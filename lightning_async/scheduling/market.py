"""What a scheduler decides on: who asks, who else is there, and what there is to do. Plain values, no clock, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_async.scheduling.held import Unit


@dataclass(frozen=True, kw_only=True)
class Capability:
    """What a worker's machine is, as it says; 0 where it does not say."""

    memory_bytes: int = 0
    cores: int = 0

    @classmethod
    def read(cls, host: Mapping[str, Any]) -> Capability:
        """From the facts of a Hello; what is no whole number counts as not said."""
        return cls(**{name: _whole(host.get(name)) for name in ("memory_bytes", "cores")})


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """How a worker has done so far, in the server's sight but for its line's speed.

    `reliability`, 0 to 1: the share of its samples that it did not lose, where it begins with a good name.
    """

    bytes_per_s: float = 0.0  # of its line, as it has measured it; 0: not yet
    reliability: float = 1.0
    held: int = 0  # samples that it has leased and not done


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker that could have a unit. `seconds(samples)`: what the run's predictor expects it to take."""

    name: str
    seconds: Callable[[int], float]
    capability: Capability = Capability()
    telemetry: Telemetry = Telemetry()

    def through_s(self, unit: Unit) -> float:
        """When it would be through with `unit`, seconds from now: after what it holds."""
        return self.seconds(self.telemetry.held + unit.size)


@dataclass(frozen=True, kw_only=True)
class Market:
    """A moment at which somebody asks: the first of `workers`. The others will ask too.

    `units`: what can be handed out, oldest first. `newest`: the pass that is being begun. `more`: there is more than
    these units, so that nobody has to go without.
    """

    workers: tuple[Worker, ...]
    units: tuple[Unit, ...]
    newest: int
    more: bool = False

    def age(self, unit: Unit) -> int:
        """Passes that wait for it, and how often it was in vain: what is old is urgent."""
        return self.newest - unit.oldest + max(piece.wear for piece in unit.pieces)


def _whole(value: Any) -> int:
    try:
        return max(0, min(int(value), 2**62))
    except (TypeError, ValueError):
        return 0
