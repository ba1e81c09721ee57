"""What distance rules share: squared distances from a Gram matrix, nearest rows, Krum's score. Ties: the lower row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_async.aggregation.base import Matrix

ROUNDING = 1e-13


def squared(gram: Matrix) -> Matrix:
    """D[i, j] = |x_i - x_j|^2, [k, k], exactly symmetric; what is below the rounding of G is zero.

    (Neighbour mixing makes equal rows; noise between them must not decide who is nearest.)
    """
    norms = np.diag(gram)
    both = norms[:, None] + norms[None, :]
    distances: Matrix = both - (gram + gram.T)
    distances[distances <= ROUNDING * both] = 0.0
    np.fill_diagonal(distances, 0.0)
    return distances


def ranking(distances: Matrix, neighbours: int) -> NDArray[np.int64]:
    """The rows, best Krum score first: the sum of squared distances to a row's `neighbours` nearest other rows.

    Two rows that are each other's nearest tie where one neighbour counts: then the smaller sum over all rows is first,
    and only then the lower row.
    """
    others = np.sort(distances + np.diag(np.full(len(distances), np.inf)), axis=1)
    return np.lexsort((distances.sum(axis=1), others[:, :neighbours].sum(axis=1)))


def nearest(distances: Matrix, keep: int) -> NDArray[np.int64]:
    """[k, keep]: for each row itself first, then the rows nearest to it."""
    itself_first = distances - np.eye(len(distances))
    return np.argsort(itself_first, axis=1, kind="stable")[:, :keep]


def average(members: Sequence[int] | NDArray[np.int64], k: int) -> Matrix:
    """[1, k]: the weights of the mean of these rows."""
    weights = np.zeros((1, k))
    weights[0, list(members)] = 1.0 / len(members)
    return weights
