"""What distance rules share: squared distances from a Gram matrix, nearest rows, Krum's score. Ties: the lower row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_async.aggregation.base import Matrix


def squared(gram: Matrix) -> Matrix:
    """D[i, j] = |x_i - x_j|^2, [k, k], with an exact zero diagonal."""
    norms = np.diag(gram)
    distances: Matrix = np.maximum(norms[:, None] + norms[None, :] - gram - gram.T, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def scores(distances: Matrix, neighbours: int) -> NDArray[np.float64]:
    """Krum's score of each row: the sum of its squared distances to its `neighbours` nearest other rows."""
    others = np.sort(distances + np.diag(np.full(len(distances), np.inf)), axis=1)
    total: NDArray[np.float64] = others[:, :neighbours].sum(axis=1)
    return total


def nearest(distances: Matrix, keep: int) -> NDArray[np.int64]:
    """[k, keep]: for each row itself first, then the rows nearest to it."""
    itself_first = distances - np.eye(len(distances))
    return np.argsort(itself_first, axis=1, kind="stable")[:, :keep]


def average(members: Sequence[int] | NDArray[np.int64], k: int) -> Matrix:
    """[1, k]: the weights of the mean of these rows."""
    weights = np.zeros((1, k))
    weights[0, list(members)] = 1.0 / len(members)
    return weights
