"""The n - f rows of smallest diameter, exactly, without trying all C(n, f) sets.

The rows that must go at a diameter t are a vertex cover, of size f, of the pairs that are further apart than t. A cover
holds either a vertex or all of its partners, so few branches are needed; the smallest t is found by bisection.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_async.aggregation.base import Matrix

Pairs = frozenset[tuple[int, int]]


def smallest_diameter(distances: Matrix, f: int) -> list[int]:
    """The n - f members; of sets of equal diameter, the smallest sum of distances, then the lowest rows."""
    lengths = np.unique(distances)
    low, high = 0, len(lengths) - 1
    while low < high:
        mid = (low + high) // 2
        if next(_covers(_apart(distances, lengths[mid]), f), None) is None:
            low = mid + 1
        else:
            high = mid
    kept = {_filled(cover, distances, f) for cover in _covers(_apart(distances, lengths[low]), f)}
    by_size = [(float(distances[np.ix_(rows, rows)].sum()), rows) for rows in kept]
    return list(min(by_size)[1])


def _apart(distances: Matrix, limit: float) -> Pairs:
    i, j = np.nonzero(np.triu(distances > limit, 1))
    return frozenset(zip(i.tolist(), j.tolist(), strict=True))


def _covers(pairs: Pairs, f: int) -> Iterator[frozenset[int]]:
    """Every minimal set of at most f rows that meets all pairs (and some that are not minimal)."""
    if not pairs:
        yield frozenset()
        return
    partners: dict[int, set[int]] = {}
    for i, j in pairs:
        partners.setdefault(i, set()).add(j)
        partners.setdefault(j, set()).add(i)
    busiest = min(partners, key=lambda row: (-len(partners[row]), row))
    if f < 1 or len(pairs) > f * len(partners[busiest]):
        return
    for gone in (frozenset({busiest}), frozenset(partners[busiest])):
        if len(gone) <= f:
            left = frozenset(pair for pair in pairs if gone.isdisjoint(pair))
            yield from (gone | rest for rest in _covers(left, f - len(gone)))


def _filled(cover: frozenset[int], distances: Matrix, f: int) -> tuple[int, ...]:
    """A cover of fewer than f rows leaves some to drop: the row that is farthest from the rest, again and again; of
    equally far ones the last."""
    rows = [row for row in range(len(distances)) if row not in cover]
    while len(rows) > len(distances) - f:
        sums = distances[np.ix_(rows, rows)].sum(axis=1)
        rows.pop(len(rows) - 1 - int(sums[::-1].argmax()))
    return tuple(rows)
