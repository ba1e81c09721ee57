"""Rows, dense or sparse, as a stream of small blocks; and the three things that are computed from such a stream.

A block is [n, b] float32 with b <= about `BLOCK` and says where its columns belong in the long vector. All-dense rows
are cut at fixed positions. All-sparse rows are cut so that a block holds about `BLOCK` non-zeros, and its columns are
only the coordinates that some row has: the work follows the non-zeros, never n x d. A mixture is cut like dense rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_async.aggregation import kernels
from lightning_async.aggregation.base import Matrix, Row
from lightning_async.errors import ConfigError
from lightning_async.sparse import Sparse

BLOCK = 1 << 14
Columns: TypeAlias = slice | NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float32]


def length(rows: Sequence[Row]) -> int:
    """The common length d of the rows. Raises ConfigError where a row is not a float32 vector of that length."""
    sizes = {row.size if isinstance(row, Sparse) else row.numel() for row in rows}
    for row in rows:
        values = row.values if isinstance(row, Sparse) else row
        if values.dtype != torch.float32 or values.dim() != 1 or not values.is_contiguous():
            raise ConfigError(
                f"got a row of {values.dtype} with shape {tuple(values.shape)}; "
                "rows are contiguous float32 vectors; flatten and convert them with the layout"
            )
    if len(sizes) != 1:
        raise ConfigError(f"got rows of lengths {sorted(sizes)}; one aggregate needs rows of one length")
    return sizes.pop()


def arrays(rows: Sequence[Tensor]) -> list[Floats]:
    """The rows' memory, shared, as numpy."""
    return [row.detach().numpy() for row in rows]


def blocks(rows: Sequence[Row], size: int = BLOCK) -> Iterator[tuple[Columns, Floats]]:
    """(columns, block [n, b]) over everything that can be non-zero. The block's memory is used again for the next."""
    sparse = [row for row in rows if isinstance(row, Sparse)]
    if len(sparse) == len(rows):
        yield from _sparse_blocks(sparse, size)
    else:
        yield from _dense_blocks(rows, size)


def weighted_sum(rows: Sequence[Row], weights: Sequence[float]) -> Tensor:
    """sum_i weights[i] * rows[i], [d]; rows of weight 0 are not read. One dense row of weight 1 is returned itself."""
    used = [(row, weight) for row, weight in zip(rows, weights, strict=True) if weight != 0.0]
    if len(used) == 1 and used[0][1] == 1.0 and isinstance(used[0][0], Tensor):
        return used[0][0]
    dense = [(row, weight) for row, weight in used if isinstance(row, Tensor)]
    total = (np.empty if dense else np.zeros)(length(rows), np.float32)
    if dense:
        kernels.weighted_sum(arrays([row for row, _ in dense]), [weight for _, weight in dense], total)
    for row, weight in used:
        if isinstance(row, Sparse):
            indices, values = _sparse_arrays(row)
            total[indices] += values * np.float32(weight)
    return torch.from_numpy(total)


def gram(rows: Sequence[Row]) -> Matrix:
    """G[i, j] = <x_i, x_j>, [n, n], products and sums in float64. The Gram matrices of the parts of a vector add up."""
    dense = [row for row in rows if isinstance(row, Tensor)]
    if len(dense) == len(rows):
        return kernels.gram(arrays(dense))
    parts = (kernels.gram(list(block)) for _, block in blocks(rows))
    return sum(parts, np.zeros((len(rows), len(rows))))


def norms(rows: Sequence[Row]) -> Matrix:
    """The diagonal of `gram` alone (zeros beside it), at 1/n of its cost."""
    values = [row.values if isinstance(row, Sparse) else row for row in rows]
    return np.diag([_square(v) for v in arrays(values)])


def _square(values: Floats) -> float:
    parts = (values[start : start + BLOCK].astype(np.float64) for start in range(0, len(values), BLOCK))
    return float(sum(part @ part for part in parts))


def _dense_blocks(rows: Sequence[Row], size: int) -> Iterator[tuple[Columns, Floats]]:
    d = length(rows)
    buffer = np.empty((len(rows), min(size, d)), np.float32)
    cuts = [(row, *_sparse_arrays(row)) if isinstance(row, Sparse) else row.detach().numpy() for row in rows]
    for start in range(0, d, size):
        stop = min(start + size, d)
        block = buffer[:, : stop - start]
        for line, cut in zip(block, cuts, strict=True):
            if isinstance(cut, tuple):
                _, indices, values = cut
                low, high = np.searchsorted(indices, (start, stop))
                line[:] = 0.0
                line[indices[low:high] - start] = values[low:high]
            else:
                line[:] = cut[start:stop]
        yield slice(start, stop), block


def _sparse_arrays(row: Sparse) -> tuple[NDArray[np.int64], Floats]:
    return row.indices.numpy(), row.values.detach().numpy()


def _sparse_blocks(rows: Sequence[Sparse], size: int) -> Iterator[tuple[Columns, Floats]]:
    d, stored = length(rows), sum(row.indices.numel() for row in rows)
    span = d if stored <= size else max(1, d * size // stored)
    parts = [_sparse_arrays(row) for row in rows]
    edges = np.append(np.arange(0, d, span), d)
    cuts = [np.searchsorted(indices, edges) for indices, _ in parts]
    place = np.empty(span, np.int32)
    for k, start in enumerate(edges[:-1]):
        pieces = [slice(cut[k], cut[k + 1]) for cut in cuts]
        inside = [(indices[piece] - start).astype(np.int32) for (indices, _), piece in zip(parts, pieces, strict=True)]
        columns = _union(inside)
        place[columns] = np.arange(len(columns), dtype=np.int32)
        block = np.zeros((len(rows), len(columns)), np.float32)
        for line, here, (_, values), piece in zip(block, inside, parts, pieces, strict=True):
            line[place[here]] = values[piece]
        yield columns.astype(np.int64) + start, block


def _union(parts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """The sorted distinct numbers of all parts."""
    joined = np.concatenate(parts)
    joined.sort()
    first = np.ones(len(joined), np.bool_)
    np.not_equal(joined[1:], joined[:-1], out=first[1:])
    return joined[first]


def sample(rows: Sequence[Row], count: int) -> Floats:
    """[n, s]: the rows at about `count` evenly spaced coordinates; of all-sparse rows, at coordinates that some has."""
    kept = [row for row in rows if isinstance(row, Sparse)]
    if len(kept) < len(rows):
        d = length(rows)
        positions = np.arange(0, d, max(1, d // count))
    else:
        step = max(1, sum(row.indices.numel() for row in kept) // count)
        positions = np.unique(np.concatenate([row.indices.numpy()[::step] for row in kept]))
    return np.stack([at(row, positions) for row in rows])


def at(row: Row, positions: NDArray[np.int64]) -> Floats:
    """The row's values at these coordinates, [len(positions)]."""
    if isinstance(row, Tensor):
        found: Floats = row.detach().numpy()[positions]
        return found
    indices, values = _sparse_arrays(row)
    if len(indices) == 0:
        return np.zeros(len(positions), np.float32)
    nearest = np.searchsorted(indices[:-1], positions)
    return np.where(indices[nearest] == positions, values[nearest], np.float32(0.0))
