"""Members that prepare rows for a rule: clip_norm, clip_to_median_norm, arc, nnm, bucketing. `pipeline` chains them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lightning_async.aggregation.aggregator import Aggregator
from lightning_async.aggregation.base import Demand, Matrix, Mix, tolerated
from lightning_async.aggregation.distances import nearest, squared
from lightning_async.arguments import number, whole
from lightning_async.errors import ConfigError
from lightning_async.spec import call


def pipeline(*members: Mix | Aggregator) -> Aggregator:
    """The preprocessing members in order, then the rule that comes last. It is robust where that rule is."""
    *first, last = members if members else (None,)
    preparing = [member for member in first if isinstance(member, Mix)]
    if not isinstance(last, Aggregator) or len(preparing) != len(first):
        got = ", ".join(getattr(member, "spec", repr(member)) for member in members)
        raise ConfigError(f"got pipeline({got}); give preprocessing members and one rule: pipeline(nnm(f=2), median())")
    mixes = (*preparing, *last.mixes)
    return Aggregator(call("pipeline", *members), last.robust, mixes, last.end, last.demand)


def clip_norm(c: float) -> Mix:
    """Each row longer than `c` is scaled to length c."""
    number("clip_norm c", c, above=0)
    return _clipping(call("clip_norm", c=c), lambda norms: c, Demand())


def clip_to_median_norm() -> Mix:
    """Each row longer than the median of the lengths is scaled to it; the median is an honest one while n > 2f."""
    return _clipping(call("clip_to_median_norm"), lambda norms: float(np.median(norms)), Demand())


def arc(f: int) -> Mix:
    """The floor(2 (f / n) (n - f)) longest rows are scaled to the length of the next one; n > 2f.

    Source: Allouah et al. 2024, Adaptive Robust Clipping, algorithm 2. It keeps the guarantee of the rule it precedes.
    """
    least = 2 * tolerated("arc", f) + 1

    def limit(norms: NDArray[np.float64]) -> float:
        n = len(norms)
        return float(np.sort(norms)[n - 1 - 2 * f * (n - f) // n])

    return _clipping(call("arc", f=f), limit, Demand(least, f"n > 2f = {2 * f}"))


def nnm(f: int) -> Mix:
    """Nearest-neighbour mixing: each row becomes the mean of itself and its n - f - 1 nearest others; n > 2f.

    Brings the guarantee of median, trimmed mean, Krum and geometric median to the order f / n also where the workers'
    data differ. Source: Allouah et al. 2023, Fixing by Mixing, algorithm 2.
    """
    least = 2 * tolerated("nnm", f) + 1

    def weigh(gram: Matrix, _: int) -> Matrix:
        k = len(gram)
        weights = np.zeros((k, k))
        np.put_along_axis(weights, nearest(squared(gram), k - f), 1.0 / (k - f), axis=1)
        return weights

    return Mix(call("nnm", f=f), weigh, Demand(least, f"n > 2f = {2 * f}"))


def bucketing(s: int) -> Mix:
    """The rows, shuffled, become the means of ceil(n / s) buckets of at most s; before a rule for f, f < n / (2s).

    The seed is in the aggregator's state, never in the spec, which workers see: `Aggregator.init` takes a secret of the
    server's, and each step adds 1.
    Source: Karimireddy et al. 2022, algorithm 1.
    """
    whole("bucketing s", s, 1)

    def weigh(gram: Matrix, seed: int) -> Matrix:
        k = len(gram)
        order = np.random.default_rng(seed).permutation(k)
        weights = np.zeros((-(-k // s), k))
        for bucket, line in enumerate(weights):
            members = order[bucket * s : (bucket + 1) * s]
            line[members] = 1.0 / len(members)
        return weights

    return Mix(call("bucketing", s=s), weigh, rows=lambda k: -(-k // s), reads="count", shuffles=True)


def _clipping(spec: str, limit: Callable[[NDArray[np.float64]], float], demand: Demand) -> Mix:
    """Rows longer than limit(all lengths) are scaled to it."""

    def weigh(gram: Matrix, _: int) -> Matrix:
        norms = np.sqrt(np.diag(gram))
        longest = limit(norms)
        factors = np.divide(longest, norms, out=np.ones_like(norms), where=norms > longest)
        return np.diag(factors)

    return Mix(spec, weigh, demand, reads="norms")
