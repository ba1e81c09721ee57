"""A scenario as data: what is trained, by whom, over which lines, for how long. YAML files and these classes agree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from lightning_async.attacks import attack
from lightning_async.config import RunConfig
from lightning_async.links.link import Link, require


@dataclass(frozen=True, kw_only=True)
class Churn:
    """A worker is there for `up_s` seconds on average and then away for `down_s`, both exponential, again and again.

    With probability `crash` it goes without a word; else it sends what it has and says goodbye.
    """

    up_s: float
    down_s: float
    crash: float = 0.5

    def __post_init__(self) -> None:
        require(min(self.up_s, self.down_s) > 0 and 0 <= self.crash <= 1, self, "times > 0 and 0 <= crash <= 1")


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A line that all workers of one site share, in front of their own."""

    up_mbps: float
    down_mbps: float

    def __post_init__(self) -> None:
        require(min(self.up_mbps, self.down_mbps) > 0, self, "rates > 0")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Workers that are alike. Times are seconds from the start.

    `speeds`: one worker for each, relative to `step_s`; or `count` workers whose speeds are `speed`, or fall in equal
    ratios from `speed` to `slowest`.
    """

    name: str = "worker"
    count: int = 1
    speed: float = 1.0
    slowest: float | None = None
    speeds: tuple[float, ...] = ()
    link: Link = field(default_factory=Link)
    trunk: Trunk | None = None
    attack: str | None = None
    joins_s: float = 0.0
    leaves_s: float | None = None
    crashes_s: float | None = None
    churn: Churn | None = None

    def __post_init__(self) -> None:
        require(self.count >= 1 and all(0 < s < math.inf for s in self.each()), self, "count >= 1 and speeds > 0")
        times = [self.joins_s, *(t for t in (self.leaves_s, self.crashes_s) if t is not None)]
        require(min(times) >= 0, self, "times >= 0")
        require(self.link.cuts is None, self.link, "a line without cuts: in a simulation `churn` breaks connections")
        if self.attack is not None:
            attack(self.attack)

    def each(self) -> tuple[float, ...]:
        """The speed of every worker of the group, the attack's own haste included."""
        haste = 1.0 if self.attack is None else attack(self.attack).speed
        if self.speeds:
            return tuple(haste * speed for speed in self.speeds)
        last = self.speed if self.slowest is None else self.slowest
        ratio = (last / self.speed) ** (1 / (self.count - 1)) if self.count > 1 else 1.0
        return tuple(haste * self.speed * ratio**i for i in range(self.count))


@dataclass(frozen=True)
class Place:
    """One worker of a scenario."""

    name: str
    number: int
    speed: float
    group: Group


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One simulation.

    With `passes` the workers share the data of the first of them by leases, so many passes over it, and then go; else
    each draws from its own for ever. `run` is the server's configuration, as for `lightning-async serve`. A step of a
    worker of speed 1 takes `step_s` seconds, give or take a share of up to `step_jitter`. It ends after
    `run.total_steps` steps or `seconds`, whichever comes first, or when nobody is left. The published parameters are
    evaluated about `evaluations` times; `target_loss` is what "time to loss" means. `server` is the server's own line.
    """

    name: str = "scenario"
    about: str = ""
    task: str = "synthetic()"
    run: RunConfig = field(default_factory=RunConfig)
    workers: tuple[Group, ...] = ()
    server: Link = field(default_factory=lambda: Link(latency_ms=0.0))
    step_s: float = 0.25
    step_jitter: float = 0.05
    seconds: float | None = None
    passes: int | None = None
    evaluations: int = 40
    target_loss: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.workers) > 0, "no workers", "at least one group of workers")
        fine = 0 < self.step_s < math.inf and 0 <= self.step_jitter < 1
        require(fine, (self.step_s, self.step_jitter), "step_s > 0 and 0 <= step_jitter < 1")
        bounded = (
            self.run.total_steps is not None
            or self.passes is not None
            or (self.seconds is not None and 0 < self.seconds < math.inf)
        )
        require(bounded, "no end", "run.total_steps, passes, or seconds > 0")
        require(self.passes is None or self.passes >= 1, self.passes, "passes >= 1")
        require(self.evaluations >= 1, self.evaluations, "evaluations >= 1")
        names = [place.name for place in self.places()]
        require(len(set(names)) == len(names), names, "a name of its own for every group")

    def places(self) -> Iterator[Place]:
        """Every worker, with a name of its own."""
        number = 0
        for group in self.workers:
            speeds = group.each()
            for i, speed in enumerate(speeds):
                yield Place(group.name if len(speeds) == 1 else f"{group.name}-{i}", number, speed, group)
                number += 1
