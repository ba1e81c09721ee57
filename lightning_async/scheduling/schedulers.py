"""Schedulers: which unit the worker gets that asks. A scheduler is a frozen object; its work is one function.

`choose(market)` gives the index of a unit for the first worker of the market; None passes it over, because others will
be through with everything sooner: it then has nothing left in this pass. Where there is more to do than the market
shows nobody is passed over.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from lightning_async import spec
from lightning_async.arguments import number
from lightning_async.errors import ConfigError
from lightning_async.scheduling.market import Market, Worker
from lightning_async.scheduling.matching import stable_matching

Choose = Callable[[Market], int | None]


@dataclass(frozen=True)
class Scheduler:
    """`choose` as above. `looks`: whether it looks at more than the first unit and the worker that asks."""

    spec: str
    choose: Choose = field(compare=False, repr=False)
    looks: bool = True


def first_come() -> Scheduler:
    """Whoever asks gets what has waited longest."""
    return Scheduler(spec.call("first_come"), lambda market: 0, looks=False)


def priority(age: float = 1.0, size: float = 0.0, locality: float = 0.5) -> Scheduler:
    """Whoever asks gets the unit with the largest age x a + size x s + locality x l: a passes wait for it (and times
    that it was in vain), s is its size beside the largest, l the share of it that this worker has had before."""
    _weights(age=age, size=size, locality=locality)

    def choose(market: Market) -> int | None:
        largest = max(unit.size for unit in market.units)
        name = market.workers[0].name
        worth = [
            age * market.age(unit) + size * unit.size / largest + locality * unit.samples_of(name) / unit.size
            for unit in market.units
        ]
        return _best(worth)

    return Scheduler(spec.call("priority", age=age, size=size, locality=locality), choose)


def capability(slack: float = 1.0) -> Scheduler:
    """Each unit in turn goes to the worker that would be through with it first, after what it holds and was given
    before; who asks gets the first of its own. With `slack` > 1 it also gets one for which it needs at most so many
    times as long as the first. Minimum completion time (Ibarra and Kim 1977; Maheswaran et al. 1999)."""
    number("capability slack", slack, least=1)

    def choose(market: Market) -> int | None:
        load = [worker.telemetry.held for worker in market.workers]
        for index, unit in enumerate(market.units):
            times = [w.seconds(held + unit.size) for w, held in zip(market.workers, load, strict=True)]
            soonest = min(times)
            if times[0] <= slack * soonest:
                return index
            load[times.index(soonest)] += unit.size
        return 0 if market.more else None

    return Scheduler(spec.call("capability", slack=slack), choose)


def gale_shapley(
    proposers: str = "workers",
    time: float = 1.0,
    reliability: float = 1.0,
    memory: float = 0.25,
    bandwidth: float = 0.25,
    size: float = 1.0,
    age: float = 1.0,
    locality: float = 0.5,
) -> Scheduler:
    """Who asks gets its partner in a stable matching of all workers and units; the best one for every worker, or, with
    proposers="units", for every unit.

    A worker likes a unit by size x s + locality x l - time x t: its size beside the largest, the share of it that the
    worker has had before, and the time that it takes beside the longest. A unit likes a worker by reliability x r x
    (1 + age x a) + memory x m + bandwidth x b - time x t: what the worker does not lose, more so for what is old; its
    memory and line beside the largest; and when it would be through.
    """
    terms = _Terms(time, reliability, memory, bandwidth, size, age, locality)
    _weights(**asdict(terms))
    if proposers not in ("workers", "units"):
        raise ConfigError(f'gale_shapley proposers: got {proposers!r}, expected "workers" or "units"')

    def choose(market: Market) -> int | None:
        theirs, ours = ([_ordered(row) for row in side] for side in terms.liking(market))
        if proposers == "workers":
            found = stable_matching(theirs, ours)[0]
        else:
            takers = stable_matching(ours, theirs)
            found = takers.index(0) if 0 in takers else None
        return 0 if found is None and market.more else found

    return Scheduler(spec.call("gale_shapley", proposers=proposers, **asdict(terms)), choose)


@dataclass(frozen=True)
class _Terms:
    """What the terms of `gale_shapley` weigh; its docstring has the formulas."""

    time: float
    reliability: float
    memory: float
    bandwidth: float
    size: float
    age: float
    locality: float

    def liking(self, market: Market) -> tuple[list[list[float]], list[list[float]]]:
        """(of each worker each unit, of each unit each worker)."""
        workers, units = market.workers, market.units
        through = [[worker.through_s(unit) for unit in units] for worker in workers]
        longest, largest = max(max(row) for row in through) or 1.0, max(unit.size for unit in units)
        theirs = [
            [
                self.size * unit.size / largest
                + self.locality * unit.samples_of(worker.name) / unit.size
                - self.time * took / longest
                for unit, took in zip(units, row, strict=True)
            ]
            for worker, row in zip(workers, through, strict=True)
        ]
        able = self._able(workers)
        ours = [
            [
                self.reliability * worker.telemetry.reliability * (1.0 + self.age * market.age(unit))
                + able[w]
                - self.time * through[w][u] / longest
                for w, worker in enumerate(workers)
            ]
            for u, unit in enumerate(units)
        ]
        return theirs, ours

    def _able(self, workers: Sequence[Worker]) -> list[float]:
        """What each worker's memory and line count."""
        most = max(w.capability.memory_bytes for w in workers) or 1
        widest = max(w.telemetry.bytes_per_s for w in workers) or 1.0
        return [
            self.memory * w.capability.memory_bytes / most + self.bandwidth * w.telemetry.bytes_per_s / widest
            for w in workers
        ]


def own(path: str) -> Scheduler:
    """A function of yours, "module:function", that the server imports: (Market) -> index of a unit, or None."""
    module, _, name = path.partition(":")
    try:
        choose = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f'scheduler: cannot import {path!r} ({error}); expected "module:function"') from error
    if not callable(choose):
        raise ConfigError(f"scheduler: {path!r} is a {type(choose).__name__}, expected a function")

    def checked(market: Market) -> int | None:
        index = choose(market)
        if index is not None and (not isinstance(index, int) or not 0 <= index < len(market.units)):
            raise ConfigError(f"{path} gave {index!r}, expected None or the index of one of {len(market.units)} units")
        return 0 if index is None and market.more else index

    return Scheduler(spec.call("own", path=path), checked)


SCHEDULERS: dict[str, Callable[..., Scheduler]] = {
    "first_come": first_come,
    "priority": priority,
    "capability": capability,
    "gale_shapley": gale_shapley,
    "own": own,
}


def scheduler(value: str | Scheduler) -> Scheduler:
    """The scheduler that `value` is or names."""
    return value if isinstance(value, Scheduler) else spec.parse(value, SCHEDULERS, "scheduler")


def _best(worth: Sequence[float]) -> int:
    return max(range(len(worth)), key=lambda i: (worth[i], -i))


def _ordered(row: Sequence[float]) -> list[int]:
    """The other side, the best first; of equal ones the earlier."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


def _weights(**values: float) -> None:
    for name, value in values.items():
        number(f"scheduler {name}", value, least=0)
