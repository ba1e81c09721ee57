"""How near each row is to a given vector, and which rows are copies of each other: for reputations, not for rules.

One reading pass over the rows, sums of float32 products in blocks. A row whose products overflow is infinitely far and
points nowhere. Sparse rows cost what they store.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_async.aggregation.base import Row
from lightning_async.aggregation.blocks import Floats, at, sample
from lightning_async.sparse import Sparse

PART = 1 << 16
SAMPLED = 1 << 14
SUSPECT = 0.99  # cosine at the sampled coordinates from which two rows are compared whole


def closeness(rows: Sequence[Row], vector: Tensor) -> tuple[list[float], list[float]]:
    """(|x_i - v|, cos(x_i, v)) of every row; the cosine with a zero vector is 0."""
    length = _dot(vector, vector)
    distances, cosines = [], []
    for square, product in _products(rows, _floats(vector)):
        apart = square - 2.0 * product + length
        distances.append(math.sqrt(max(apart, 0.0)) if math.isfinite(apart) else math.inf)
        cosines.append(_cosine(product, square, length))
    return distances, cosines


def copies(rows: Sequence[Row], cosine: float) -> list[tuple[int, int, float]]:
    """(i, j, cos) of every pair i < j of rows whose cosine is at least `cosine`, a number above 0.99.

    Pairs are picked at about 16,000 coordinates and then compared whole.
    """
    seen = sample(rows, SAMPLED).astype(np.float64)
    lengths = np.sqrt((seen * seen).sum(axis=1))
    seen /= np.where(lengths > 0.0, lengths, 1.0)[:, None]
    suspects = np.argwhere(np.triu(seen @ seen.T, 1) > SUSPECT)
    found = []
    for i, j in suspects.tolist():
        whole = _cosine(_dot(rows[i], rows[j]), _dot(rows[i], rows[i]), _dot(rows[j], rows[j]))
        if whole >= cosine:
            found.append((i, j, whole))
    return found


def _products(rows: Sequence[Row], vector: Floats) -> list[tuple[float, float]]:
    """(<x, x>, <x, v>) of every row. Part by part: a part of v stays in the cache while all rows meet it."""
    found = np.zeros((len(rows), 2))
    parts = range(0, len(vector), PART)
    dense = [(i, _floats(row)) for i, row in enumerate(rows) if isinstance(row, Tensor)]
    with np.errstate(over="ignore", invalid="ignore"):
        for begin, (i, floats) in itertools.product(parts if dense else (), dense):
            part = floats[begin : begin + PART]
            found[i] += np.dot(part, part), np.dot(part, vector[begin : begin + PART])
    for i, row in enumerate(rows):
        if isinstance(row, Sparse):
            values = _floats(row.values)
            found[i] = _product(values, values), _product(values, vector[row.indices.numpy()])
    return [(float(square), float(product)) for square, product in found]


def _cosine(product: float, square: float, other: float) -> float:
    below = math.sqrt(square) * math.sqrt(other)
    whole = product / below if below > 0.0 else 0.0
    return max(-1.0, min(1.0, whole)) if math.isfinite(whole) else 0.0


def _dot(a: Row, b: Row) -> float:
    if isinstance(a, Sparse):
        values = _floats(a.values)
        return _product(values, values if a is b else at(b, a.indices.numpy()))
    return _dot(b, a) if isinstance(b, Sparse) else _product(_floats(a), _floats(b))


def _product(a: Floats, b: Floats) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(sum(float(np.dot(a[i : i + PART], b[i : i + PART])) for i in range(0, len(a), PART)))


def _floats(vector: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = vector.detach().numpy()
    return array
