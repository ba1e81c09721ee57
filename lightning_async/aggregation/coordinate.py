"""Rules that look at one coordinate at a time: mean, and (robust) median, trimmed mean, mean around the median."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lightning_async.aggregation import kernels
from lightning_async.aggregation.aggregator import Aggregator
from lightning_async.aggregation.base import Block, Combine, Demand, tolerated
from lightning_async.spec import call

Floats = NDArray[np.float32]
Weights = NDArray[np.float64] | None


def mean() -> Aggregator:
    """sum_i w_i x_i / sum_i w_i. Not robust: one row of n moves it anywhere. One single row is returned itself."""
    return Aggregator(call("mean"), robust=False)


def median() -> Aggregator:
    """Per coordinate the middle value, or the mean of the two middle ones; holds while n > 2f (Yin et al. 2018)."""
    return _coordinate_wise(middle(call("median"), lambda n: (n - 1) // 2, Demand(3, "n > 2f with f >= 1")))


def trimmed_mean(f: int) -> Aggregator:
    """Per coordinate the mean without the f smallest and the f largest values; n > 2f (Yin et al. 2018, section 4)."""
    least = 2 * tolerated("trimmed_mean", f) + 1
    return _coordinate_wise(middle(call("trimmed_mean", f=f), lambda n: f, Demand(least, f"n > 2f = {2 * f}")))


def meamed(f: int) -> Aggregator:
    """Per coordinate the mean of the n - f values nearest to the median; n > 2f (Xie et al. 2018, Generalized SGD)."""
    least = 2 * tolerated("meamed", f) + 1
    spec = call("meamed", f=f)
    return _coordinate_wise(nearest(spec, lambda n: n - f, Demand(least, f"n > 2f = {2 * f}")))


def middle(spec: str, cut: Callable[[int], int], demand: Demand) -> Combine:
    """The end that drops the cut(m) smallest and the cut(m) largest of m values and averages the rest."""

    def reduce(block: Block, weights: Weights, out: Floats) -> None:
        low = cut(len(block))
        kernels.middle(block, weights, low, len(block) - low, out)

    def kept(block: Floats) -> NDArray[np.bool_]:
        low, rank = cut(len(block)), np.argsort(np.argsort(block, axis=0, kind="stable"), axis=0)
        inside: NDArray[np.bool_] = (low <= rank) & (rank < len(block) - low)
        return inside

    return Combine(spec, reduce, kept, demand)


def nearest(spec: str, keep: Callable[[int], int], demand: Demand) -> Combine:
    """The end that averages, of m values, the keep(m) nearest to their median; of two equally near, the smaller."""

    def reduce(block: Block, weights: Weights, out: Floats) -> None:
        kernels.nearest(block, weights, keep(len(block)), out)

    def kept(block: Floats) -> NDArray[np.bool_]:
        distance = np.abs(block - np.median(block, axis=0))
        inside: NDArray[np.bool_] = np.argsort(np.lexsort((block, distance), axis=0), axis=0) < keep(len(block))
        return inside

    return Combine(spec, reduce, kept, demand)


def _coordinate_wise(end: Combine) -> Aggregator:
    return Aggregator(end.spec, robust=True, end=end)
