"""Rules that iterate towards a centre. Every iterate is a mixture of the rows: a step costs n^2, whatever d is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lightning_async.aggregation.aggregator import Aggregator
from lightning_async.aggregation.base import Demand, Matrix, Mix
from lightning_async.arguments import number, whole
from lightning_async.spec import call

SMALLEST_SHARE = 1e-9


def geometric_median(tolerance: float = 1e-6, iterations: int = 1000) -> Aggregator:
    """The point z of smallest sum_i |x_i - z|, by Weiszfeld's iteration from the mean; holds while n > 2f.

    Stops when a step is shorter than `tolerance` x the median distance to the rows. Distances below 1e-9 of that median
    count as that (the smoothed iteration). Source: Weiszfeld 1937; Pillutla et al. 2022, RFA, algorithm 2.
    """
    number("geometric_median tolerance", tolerance, above=0)
    whole("geometric_median iterations", iterations, 1)
    spec = call("geometric_median", tolerance=tolerance, iterations=iterations)

    def weigh(gram: Matrix, _: int) -> Matrix:
        return weiszfeld(gram, tolerance, iterations)[None, :]

    mix = Mix(spec, weigh, Demand(3, "n > 2f with f >= 1"), rows=lambda k: 1)
    return Aggregator(spec, robust=True, mixes=(mix,))


def centered_clipping(tau: float, iterations: int = 3) -> Aggregator:
    """v <- v + mean_i (x_i - v) min(1, tau / |x_i - v|), `iterations` times, from the previous aggregate (first: 0).

    n > 2f. Made for workers that send momentum; tau is of the size of the honest rows' spread around it.
    Source: Karimireddy et al. 2021, section 4 (algorithm 2).
    """
    number("centered_clipping tau", tau, above=0)
    whole("centered_clipping iterations", iterations, 1)
    spec = call("centered_clipping", tau=tau, iterations=iterations)

    def weigh(gram: Matrix, _: int) -> Matrix:
        k = len(gram) - 1
        share = np.append(np.zeros(k), 1.0)
        for _step in range(iterations):
            clip = tau / np.maximum(_distances(gram, share)[:k], tau)
            share = share * (1.0 - clip.mean()) + np.append(clip / k, 0.0)
        return share[None, :]

    mix = Mix(spec, weigh, Demand(3, "n > 2f with f >= 1"), rows=lambda k: 1, anchored=True)
    return Aggregator(spec, robust=True, mixes=(mix,))


def weiszfeld(gram: Matrix, tolerance: float, iterations: int) -> NDArray[np.float64]:
    """Shares [n], summing to 1, of the rows in their geometric median."""
    n = len(gram)
    share = np.full(n, 1.0 / n)
    for _ in range(iterations):
        distances = _distances(gram, share)
        spread = float(np.median(distances))
        if spread == 0.0:
            break
        pull = 1.0 / np.maximum(distances, SMALLEST_SHARE * spread)
        moved = pull / pull.sum()
        step = moved - share
        share = moved
        if math.sqrt(max(float(step @ gram @ step), 0.0)) <= tolerance * spread:
            break
    return share


def _distances(gram: Matrix, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """|x_i - sum_j share[j] x_j| for every i."""
    towards = gram @ share
    found: NDArray[np.float64] = np.sqrt(np.maximum(np.diag(gram) - 2.0 * towards + share @ towards, 0.0))
    return found
