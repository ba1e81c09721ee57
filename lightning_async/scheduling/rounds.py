"""How many optimizer steps a round has: the same for everybody, or fitted to each worker and its link. Pure.

A round that is short for its worker's link waits for the exchange of the one before; a round that is long beside the
others' starts from parameters that are old when it ends. Both are avoided before they happen: rounds take about the
same time everywhere, and no less than an exchange does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_async import spec
from lightning_async.arguments import is_whole, number, whole
from lightning_async.errors import ConfigError
from lightning_async.telemetry import Ewma

ROUNDS_IN_ONE = 20  # an update holds its own round, and refused ones whose progress goes with it
FIRST = 1  # step of a first round: nobody knows yet how long it takes
HEADROOM = 1.2  # times its usual exchange that a round lasts at least: the next one may take longer
SHORTEST_S, LONGEST_S = 1e-6, 1e6  # what a worker says of itself is believed between these
CALM = 0.25  # a round whose wanted size is nearer than this share is left as it is


@dataclass(frozen=True)
class Speed:
    """What a worker has measured of itself, in seconds: a local step without waits, and an exchange of an update for
    the parameters after it."""

    step_s: Ewma = field(default_factory=Ewma)
    exchange_s: Ewma = field(default_factory=Ewma)

    def after(self, step_s: float, exchange_s: float) -> Speed:
        """With the newest round; what is not above 0 was not measured."""
        return Speed(_after(self.step_s, step_s), _after(self.exchange_s, exchange_s))

    @property
    def known(self) -> bool:
        return self.step_s.value is not None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"step_s": self.step_s.value, "exchange_s": self.exchange_s.value}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Speed:
        """What `as_dict` gave."""
        return cls(Ewma(values["step_s"]), Ewma(values["exchange_s"]))


def _after(mean: Ewma, seconds: float) -> Ewma:
    return mean.after(min(max(seconds, SHORTEST_S), LONGEST_S)) if seconds > 0 else mean


@dataclass(frozen=True)
class Sizing:
    """`of(size, mine, live)` is the size of a worker's next rounds: `size` steps now, with its own speed and those of
    all live workers, its own among them. `spec` is what a configuration says."""

    spec: int | str
    first: int
    most: int
    of: Callable[[int, Speed, Sequence[Speed]], int] | None = field(compare=False, repr=False, default=None)

    def told(self, steps: int) -> int:
        """What the server says of the next rounds, within bounds; 0 where it says nothing, or all are as configured."""
        return 0 if self.of is None or not steps else min(max(steps, 1), self.most)

    @property
    def most_claimed(self) -> int:
        """Steps that one update may claim: more than an honest worker's round explains end no run."""
        return ROUNDS_IN_ONE * self.most


def auto(steps: int = 16, most: int = 128, staleness: float = 1.5) -> Sizing:
    """Rounds of about T seconds for everybody: max(1, T / step_s) steps, `most` at most.

    T is what `steps` steps take the median worker, or, if more, what makes the longest round that cannot be shorter
    (one step, or one exchange, of any live worker) last `staleness` T, so that the others make about that many versions
    each meanwhile; never more than `most` steps of the median worker. A worker whose exchange takes longer than T has
    rounds a fifth longer than that, and communication stays hidden behind computing. First rounds have one step. A size
    at most doubles or halves at a time, and is left alone when it is off by less than a quarter.

    Generalises DyLU (Liu et al. 2024, arXiv 2401.09135, section 5), in which round sizes are proportional to speeds.
    The median in place of the fastest worker, the reach and the exchange are ours: no minority can shrink or stretch
    the rounds of the others beyond these bounds by what it says of itself.
    """
    for name, value in {"steps": steps, "most": most}.items():
        whole(f"local_steps auto: {name}", value, 1)
    if most < steps:
        raise ConfigError(f"local_steps auto: most: got {most!r}, expected at least steps, {steps!r}")
    number("local_steps auto: staleness", staleness, above=0)

    def of(size: int, mine: Speed, live: Sequence[Speed]) -> int:
        known = [speed for speed in live if speed.known]
        if mine.step_s.value is None or not known:
            return size
        usual = statistics.median(_step_s(speed) for speed in known)
        longest = max(max(_step_s(speed), speed.exchange_s.value or 0.0) for speed in known)
        wanted_s = max(
            min(max(steps * usual, longest / staleness), most * usual), HEADROOM * (mine.exchange_s.value or 0.0)
        )
        return _smooth(size, min(most, max(1, round(wanted_s / mine.step_s.value))))

    return Sizing(spec.call("auto", steps=steps, most=most, staleness=staleness), FIRST, most, of)


def _step_s(speed: Speed) -> float:
    assert speed.step_s.value is not None
    return speed.step_s.value


def _smooth(size: int, wanted: int) -> int:
    if abs(wanted - size) <= CALM * size:
        return size
    return min(max(wanted, size // 2), 2 * size)


def fixed(steps: int) -> Sizing:
    """`steps` for everybody."""
    if not is_whole(steps, 1):
        raise ConfigError(f'local_steps: got {steps!r}, expected an integer >= 1, or "auto"')
    return Sizing(steps, steps, steps)


SIZINGS: dict[str, Callable[..., Sizing]] = {"auto": auto}


def sizing(value: int | str | Sizing) -> Sizing:
    """What `value` names: a number of steps, or "auto" with or without arguments."""
    if isinstance(value, Sizing):
        return value
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if not isinstance(value, str):
        return fixed(value)
    if value.partition("(")[0].strip() not in SIZINGS:
        raise ConfigError(f'local_steps: got {value!r}, expected an integer >= 1, or "auto"')
    return spec.parse(value, SIZINGS, "local_steps")
