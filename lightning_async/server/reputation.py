"""What the server thinks of a worker: how its updates have lain to the aggregates of a robust rule. Pure.

One round gives one `Sight`: how much the rule used the update (`Outcome.influence`), how far the update was from the
aggregate in robust standard deviations of that step's distances, and its cosine to the aggregate. The verdict on it is

    v = agree x max(influence, near),   agree = clip(1 + 2 cos, 0, 1),   near = min(1, (3 / z)^2)

so an update is fine when it was used, or lay where the others lay: Krum uses one of n, and the rest did nothing wrong.
It is not fine when it points against the aggregate. The score is the moving average of the verdicts and begins at 1.

Rule of this file: only a robust rule's aggregate judges; the mean is where an attacker puts it. A copy of another
worker's update is counted and does not change the score: else copying somebody would be a way to have it excluded.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_async.aggregation.base import Row
from lightning_async.aggregation.closeness import closeness, copies
from lightning_async.aggregation.filters import Verdict
from lightning_async.telemetry import Ewma

WEIGHT = 0.2  # of the newest round
LEAST_ROUNDS = 10  # before anybody is excluded
FEW = 3  # rows from which there is a majority to compare with
COPY = 0.9999  # cosine from which two updates count as one
FAR_Z, MOST_Z = 3.0, 1000.0
ROUNDING = 1e-3  # of the aggregate's length: what float32 sums leave between equal updates
SPREAD = 1 / 3  # in units of the median distance: within twice that nobody is far, however alike the others are
TERM = 100  # versions of the first quarantine; every further one is twice as long as the one before
NAMES = ("used", "distance_z", "cosine", "score")


@dataclass(frozen=True)
class Sight:
    """One update in one step."""

    influence: float
    distance_z: float
    cosine: float

    @property
    def verdict(self) -> float:
        """0 (the rule was right to ignore it) to 1 (nothing to object)."""
        agree = min(1.0, max(0.0, 1.0 + 2.0 * self.cosine))
        near = 1.0 if self.distance_z <= FAR_Z else (FAR_Z / self.distance_z) ** 2
        return agree * max(self.influence, near)


@dataclass(frozen=True)
class Reputation:
    """Moving averages over a worker's rounds, and how many of its updates were copies."""

    rounds: int = 0
    copies: int = 0
    used: Ewma = field(default=Ewma(weight=WEIGHT))
    distance_z: Ewma = field(default=Ewma(weight=WEIGHT))
    cosine: Ewma = field(default=Ewma(weight=WEIGHT))
    score: Ewma = field(default=Ewma(1.0, WEIGHT))

    def after(self, sight: Sight) -> Reputation:
        """With one round more."""
        return replace(
            self,
            rounds=self.rounds + 1,
            used=self.used.after(sight.influence),
            distance_z=self.distance_z.after(sight.distance_z),
            cosine=self.cosine.after(sight.cosine),
            score=self.score.after(sight.verdict),
        )

    def falls_below(self, threshold: float) -> bool:
        """Whether it has been seen for long enough, and found wanting."""
        return self.rounds >= LEAST_ROUNDS and (self.score.value or 0.0) < threshold

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"rounds": self.rounds, "copies": self.copies} | {name: getattr(self, name).value for name in NAMES}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Reputation:
        """What `as_dict` gave."""
        averages = {name: Ewma(values[name], WEIGHT) for name in NAMES}
        return cls(rounds=values["rounds"], copies=values["copies"], **averages)


@dataclass(frozen=True)
class Review:
    """A step seen whole: one sight for each row, and the pairs of rows that are copies of each other."""

    sights: tuple[Sight, ...] = ()
    copies: tuple[tuple[int, int, float], ...] = ()

    @classmethod
    def of(cls, verdict: Verdict) -> Review:
        """A filter's view of one update."""
        return cls((Sight(float(verdict.passed), verdict.distance_z, verdict.cosine),))


def review(rows: Sequence[Row], aggregate: Tensor, influence: Sequence[float]) -> Review:
    """How `rows` lie to their `aggregate`. Nothing is said of fewer rows than have a majority."""
    if len(rows) < FEW:
        return Review()
    distances, cosines = closeness(rows, aggregate)
    rounding = ROUNDING * float(torch.linalg.vector_norm(aggregate))
    sights = map(Sight, influence, robust_z(distances, rounding), cosines)
    return Review(tuple(sights), tuple(copies(rows, COPY)))


def robust_z(values: Sequence[float], least: float = 0.0) -> list[float]:
    """(x - median) / spread, at most 1000, the spread being 1.4826 MAD + median / 3 + `least`."""
    middle = statistics.median(values)
    if not math.isfinite(middle):
        return [0.0] * len(values)
    spread = 1.4826 * statistics.median(abs(x - middle) if x != middle else 0.0 for x in values)
    return [_z(x - middle, spread + SPREAD * middle + least) for x in values]


def _z(apart: float, spread: float) -> float:
    if apart == 0.0:
        return 0.0
    return min(apart / spread, MOST_Z) if spread > 0.0 and math.isfinite(apart) else math.copysign(MOST_Z, apart)


def term(times: int) -> int:
    """Versions of the quarantine of a worker that was in it `times` times before."""
    return TERM << min(times, 20)
