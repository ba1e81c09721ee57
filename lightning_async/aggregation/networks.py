"""Sorting networks: the same few compare-exchanges for every coordinate, so that thousands are sorted side by side.

A comparator (i, k) puts the smaller of lines i and k on line i and the larger on line k. A network is a fixed list of
them (Batcher's odd-even merge sort; Knuth, TAOCP 3, 5.3.4), without branches on data: it vectorises, sort() does not.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Comparators = NDArray[np.int64]


@cache
def sorting(n: int) -> Comparators:
    """Comparators [p, 2] that sort any n values."""
    lines = 1 << max(n - 1, 0).bit_length()
    found = []
    for p in (1 << level for level in range(lines.bit_length() - 1)):
        for k in (p >> level for level in range(p.bit_length())):
            for j, i in product(range(k % p, lines - k, 2 * k), range(k)):
                low, high = i + j, i + j + k
                if high < n and low // (2 * p) == high // (2 * p):
                    found.append((low, high))
    return np.array(found, np.int64).reshape(-1, 2)


@cache
def selecting(n: int, *edges: int) -> Comparators:
    """Comparators that part n values by rank: lines before an edge hold the values of these ranks, in any order.

    `selecting(n, low, high)` brings the values of rank low .. high - 1 to those lines. Read backwards, a comparator
    whose two lines both end in one part changes nothing.
    """
    part: list[int | None] = [sum(edge <= i for edge in edges) for i in range(n)]
    needed = []
    for i, k in reversed(sorting(n).tolist()):
        if part[i] is None or part[i] != part[k]:
            needed.append((i, k))
            part[i] = part[k] = None
    return np.array(needed[::-1], np.int64).reshape(-1, 2)
