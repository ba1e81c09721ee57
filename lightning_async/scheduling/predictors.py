"""Predictors: how long a worker takes for so many samples, from what it took before, on the server's clock.

A predictor is a pair of pure functions with the state passed in and out, so that a snapshot saves it for free:
`observe(state, samples, seconds)` after each update of one worker, and `seconds(state, samples)`. The state is JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightning_async import spec
from lightning_async.arguments import number, whole

State = list[Any]


@dataclass(frozen=True)
class Predictor:
    """Of one worker. `seconds` is None before anything was observed; else finite and >= 0."""

    spec: str
    observe: Callable[[State, int, float], State] = field(compare=False, repr=False)
    seconds: Callable[[State, int], float | None] = field(compare=False, repr=False)


def ewma(weight: float = 0.2) -> Predictor:
    """Samples times the moving average of the seconds for one: newest times `weight`, the rest as before."""
    number("ewma weight", weight, above=0, most=1)

    def observe(state: State, samples: int, seconds: float) -> State:
        new = seconds / samples
        return [new if not state else state[0] + weight * (new - state[0])]

    return Predictor(spec.call("ewma", weight=weight), observe, lambda state, n: state[0] * n if state else None)


def least_squares(window: int = 64) -> Predictor:
    """a + b x samples with a, b >= 0, the least squares of the worker's last `window` updates: what is the same for
    every update (its way through the line) and what grows with it. Proportional until two sizes were seen."""
    whole("least_squares window", window, 2)

    def observe(state: State, samples: int, seconds: float) -> State:
        return [*state, [samples, seconds]][-window:]

    def seconds(state: State, samples: int) -> float | None:
        if not state:
            return None
        fixed, slope = line([(float(n), float(s)) for n, s in state])
        return fixed + slope * samples

    return Predictor(spec.call("least_squares", window=window), observe, seconds)


def line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """(a, b) of the best y = a + b x with a >= 0 and b >= 0."""
    n = len(points)
    mean_x, mean_y = math.fsum(x for x, _ in points) / n, math.fsum(y for _, y in points) / n
    spread = math.fsum((x - mean_x) ** 2 for x, _ in points)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread > 0 else -1.0
    if spread > 0 and slope < 0:
        return mean_y, 0.0
    if spread == 0 or mean_y - slope * mean_x < 0:
        return 0.0, math.fsum(x * y for x, y in points) / math.fsum(x * x for x, _ in points)
    return mean_y - slope * mean_x, slope


PREDICTORS: dict[str, Callable[..., Predictor]] = {"ewma": ewma, "least_squares": least_squares}


def predictor(value: str | Predictor) -> Predictor:
    """The predictor that `value` is or names."""
    return value if isinstance(value, Predictor) else spec.parse(value, PREDICTORS, "predictor")
