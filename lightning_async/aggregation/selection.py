"""Rules that choose whole rows by their distances: Krum, Multi-Krum, Bulyan, MDA, MoNNA.

Distances are over the whole flat vector, never per tensor: a row that is honest in most tensors and hostile in one is
one hostile row.
"""

from __future__ import annotations

import numpy as np

from lightning_async.aggregation.aggregator import Aggregator
from lightning_async.aggregation.base import Demand, Matrix, Mix, Weigh, tolerated
from lightning_async.aggregation.coordinate import nearest as nearest_to_median
from lightning_async.aggregation.diameter import smallest_diameter
from lightning_async.aggregation.distances import average, nearest, ranking, squared
from lightning_async.arguments import whole
from lightning_async.spec import call


def krum(f: int) -> Aggregator:
    """The row with the smallest sum of squared distances to its n - f - 2 nearest others; n >= 2f + 3.

    Source: Blanchard et al. 2017, section 3.
    """
    return _choosing(call("krum", f=f), _krum_demand("krum", f), lambda gram, _: best(gram, f, 1))


def multi_krum(f: int, m: int | None = None) -> Aggregator:
    """The mean of the m rows of best Krum score; n >= 2f + 3 and 1 <= m <= n - f - 2 (m None: n - f - 2).

    Source: Blanchard et al. 2017, section 5. The scores are computed once, not again after each choice.
    """
    demand = _krum_demand("multi_krum", f)
    if m is not None:
        whole("multi_krum m", m, 1)
        least = max(demand.least, m + f + 2)
        demand = Demand(least, f"n >= 2f + 3 = {2 * f + 3} and n >= m + f + 2 = {m + f + 2}")
    spec = call("multi_krum", f=f) if m is None else call("multi_krum", f=f, m=m)
    return _choosing(spec, demand, lambda gram, _: best(gram, f, len(gram) - f - 2 if m is None else m))


def bulyan(f: int) -> Aggregator:
    """Krum chooses n - 2f rows one after another; then per coordinate the mean of the n - 4f nearest to their median.

    n >= 4f + 3: 11 workers tolerate 2, 9 tolerate 1. Source: El Mhamdi et al. 2018, section 4. The score of a choice
    among r remaining rows counts max(1, r - f - 2) neighbours.
    """
    spec, least = call("bulyan", f=f), 4 * tolerated("bulyan", f) + 3
    demand = Demand(least, f"n >= 4f + 3 = {least}")
    choose = Mix(spec, lambda gram, _: _one_after_another(gram, f), demand, rows=lambda k: k - 2 * f)
    end = nearest_to_median(spec, lambda m: m - 2 * f, Demand())
    return Aggregator(spec, robust=True, mixes=(choose,), end=end)


def mda(f: int) -> Aggregator:
    """The mean of the n - f rows of smallest diameter (largest distance within); n > 2f.

    Among sets of equal diameter: the smallest sum of squared distances, then the lower rows. Source: El Mhamdi et al.
    2020 (minimum-diameter averaging), after Rousseeuw 1985. Exact; the search grows exponentially in f only.
    """
    demand = Demand(2 * tolerated("mda", f) + 1, f"n > 2f = {2 * f}")
    return _choosing(call("mda", f=f), demand, lambda gram, _: average(smallest_diameter(squared(gram), f), len(gram)))


def monna(f: int, pivot: int | None = None) -> Aggregator:
    """The mean of the pivot and the n - f - 1 rows nearest to it.

    `pivot` is the number of a row that is trusted (in the paper, a node's own gradient): n > 2f, for direct calls. A
    server trusts no row and refuses it: with None, Krum chooses the pivot, under Krum's n >= 2f + 3.
    Source: Farhadkhani et al. 2023 (nearest neighbour averaging).
    """
    if pivot is None:
        demand, spec = _krum_demand("monna", f), call("monna", f=f)
    else:
        tolerated("monna pivot", pivot)
        demand = Demand(max(2 * tolerated("monna", f), pivot) + 1, f"n > 2f = {2 * f} and n > pivot = {pivot}")
        spec = call("monna", f=f, pivot=pivot)

    def weigh(gram: Matrix, _: int) -> Matrix:
        distances = squared(gram)
        centre = int(best(gram, f, 1).argmax()) if pivot is None else pivot
        return average(nearest(distances, len(gram) - f)[centre], len(gram))

    return _choosing(spec, demand, weigh, trusts=pivot is not None)


def best(gram: Matrix, f: int, m: int) -> Matrix:
    """[1, k]: the mean of the m rows with the best Krum score."""
    return average(ranking(squared(gram), len(gram) - f - 2)[:m], len(gram))


def _one_after_another(gram: Matrix, f: int) -> Matrix:
    distances, left = squared(gram), list(range(len(gram)))
    chosen = []
    for _ in range(len(gram) - 2 * f):
        within = distances[np.ix_(left, left)]
        chosen.append(left.pop(int(ranking(within, max(1, len(left) - f - 2))[0])))
    rows: Matrix = np.eye(len(gram))[sorted(chosen)]
    return rows


def _krum_demand(name: str, f: int) -> Demand:
    least = 2 * tolerated(name, f) + 3
    return Demand(least, f"n >= 2f + 3 = {least}")


def _choosing(spec: str, demand: Demand, weigh: Weigh, trusts: bool = False) -> Aggregator:
    return Aggregator(spec, robust=True, mixes=(Mix(spec, weigh, demand, rows=lambda k: 1, trusts=trusts),))
