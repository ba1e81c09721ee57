"""What is computed per coordinate: in numpy here, the same compiled in compiled.py where numba is installed.

Both sort by the same network and add in the same order, so that they agree to the last bit (`gram`: to the rounding of
float64). Values must be finite: a NaN has no rank. Weighted values are sorted as one integer each, (value, weight), so
that the same network serves and the order of the rows never matters.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_async.aggregation.base import Block, Matrix
from lightning_async.aggregation.networks import Comparators, selecting, sorting

CHUNK = 1 << 13
LOW_BITS = np.int32(0x7FFFFFFF)
Floats = NDArray[np.float32]
Lines = list[Floats]


@cache
def compiled() -> ModuleType | None:
    """The numba kernels, or None where numba is not installed."""
    return importlib.import_module(f"{__package__}.compiled") if importlib.util.find_spec("numba") else None


def middle(rows: Block, weights: NDArray[np.float64] | None, low: int, high: int, out: Floats) -> None:
    """out [b] = (weighted) mean of the values of rank low .. high - 1 among the rows, each [b]."""
    network = selecting(len(rows), low, high)
    fast = compiled()
    if weights is not None:
        _weighted(rows, weights, network, low, high - low, out)
    elif fast is not None:
        done = _in_registers(rows, low, high - low, out)
        fast.middle(_addresses(rows) + 4 * done, network, low, high, out[done:])
    else:
        for lines, part in _chunks(rows, out):
            _exchange(lines, network)
            _mean(lines[low:high], part)


def nearest(rows: Block, weights: NDArray[np.float64] | None, keep: int, out: Floats) -> None:
    """out [b] = (weighted) mean of the `keep` values nearest to the median; of two equally near, the smaller."""
    network = sorting(len(rows))
    fast = compiled()
    if weights is not None:
        _weighted(rows, weights, network, -1, keep, out)
    elif fast is not None:
        done = _in_registers(rows, -1, keep, out)
        fast.nearest(_addresses(rows) + 4 * done, network, keep, out[done:])
    else:
        for lines, part in _chunks(rows, out):
            _exchange(lines, network)
            first = _offsets(lines, keep)
            part[:] = 0.0
            for i, line in enumerate(lines):
                part += np.where((first <= i) & (i < first + keep), line, np.float32(0.0))
            part *= np.float32(1.0) / np.float32(keep)


def weighted_sum(rows: Block, weights: Sequence[float], out: Floats) -> None:
    """out [b] = sum_i weights[i] * rows[i]; equal weights are applied once, to the sum."""
    equal = all(weight == weights[0] for weight in weights)
    each, scale = ([1.0] * len(rows), weights[0]) if equal else (weights, 1.0)
    narrow, fast = np.array(each, np.float32), compiled()
    if fast is not None:
        fast.weighted_sum(_addresses(rows), narrow, np.float32(scale), out)
        return
    for start in range(0, len(out), CHUNK):
        part = out[start : start + CHUNK]
        part[:] = 0.0
        for row, weight in zip(rows, narrow, strict=True):
            part += row[start : start + CHUNK] * weight
        part *= np.float32(scale)


def gram(rows: Block) -> Matrix:
    """G[i, j] = sum over coordinates of rows[i] * rows[j], [n, n]; products exact, sums in float64."""
    n, d, fast = len(rows), len(rows[0]), compiled()
    if fast is not None:
        upper = np.zeros((n + n % 2, n + n % 2))
        fast.gram(_addresses(rows), d, upper)
        half = np.triu(upper[:n, :n])
        whole: Matrix = half + np.triu(half, 1).T
        return whole
    total = torch.zeros(n, n, dtype=torch.float64)
    for start in range(0, d, CHUNK):
        wide = torch.stack([torch.from_numpy(row[start : start + CHUNK]).double() for row in rows])
        total.addmm_(wide, wide.T)
    return np.asarray(total)


def _weighted(
    rows: Block, weights: NDArray[np.float64], network: Comparators, low: int, keep: int, out: Floats
) -> None:
    narrow, fast = weights.astype(np.float32), compiled()
    if fast is not None:
        fast.weighted(_addresses(rows), narrow, network, low, keep, out)
        return
    for lines, part in _chunks(rows, out):
        keys = [_keys(line, weight) for line, weight in zip(lines, narrow.view(np.int32).tolist(), strict=True)]
        _exchange(keys, network)
        lines = [_ordered((key >> 32).astype(np.int32)).view(np.float32) for key in keys]
        shares = [(key & LOW_BITS).astype(np.int32).view(np.float32) for key in keys]
        first = _offsets(lines, keep) if low < 0 else np.full(len(part), low, np.int32)
        total, mass = np.zeros_like(part), np.zeros_like(part)
        for i, (line, share) in enumerate(zip(lines, shares, strict=True)):
            inside = (first <= i) & (i < first + keep)
            total += np.where(inside, line * share, np.float32(0.0))
            mass += np.where(inside, share, np.float32(0.0))
        np.divide(total, mass, out=part)


def _in_registers(rows: Block, low: int, keep: int, out: Floats) -> int:
    """How many coordinates, from the first on, a kernel made for this number of rows has done: nearly all, or none."""
    registers = importlib.import_module(f"{__package__}.registers")
    if len(out) < registers.WORTHWHILE or len(rows) > registers.MOST_ROWS:
        return 0
    table, done = _addresses(rows), len(out) - len(out) % int(registers.WIDTH)
    registers.averaging(len(rows), low, keep)(table.ctypes.data, out.ctypes.data, done)
    return done


def _addresses(rows: Block) -> NDArray[np.int64]:
    """Where each row's memory begins. The kernels trust this: the rows are float32, contiguous, of one length."""
    return np.array([row.__array_interface__["data"][0] for row in rows], np.int64)


def _chunks(rows: Block, out: Floats) -> Iterator[tuple[Lines, Floats]]:
    """Copies of the rows, `CHUNK` coordinates at a time, with the part of `out` that they belong to."""
    for start in range(0, len(out), CHUNK):
        yield [row[start : start + CHUNK].copy() for row in rows], out[start : start + CHUNK]


def _exchange(lines: Lines | list[NDArray[np.int64]], network: Comparators) -> None:
    spare = np.empty_like(lines[0])
    for i, k in network.tolist():
        np.minimum(lines[i], lines[k], out=spare)
        np.maximum(lines[i], lines[k], out=lines[k])
        lines[i], spare = spare, lines[i]


def _keys(line: Floats, weight: int) -> NDArray[np.int64]:
    """One int64 per value, ordered as (value, weight): the ordered bits of the value, then the bits of the weight."""
    key: NDArray[np.int64] = (_ordered(line.view(np.int32)).astype(np.int64) << 32) | weight
    return key


def _ordered(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    """Bits of floats -> integers in the same order, and back: a negative float's bits count downwards."""
    ordered: NDArray[np.int32] = bits ^ ((bits >> 31) & LOW_BITS)
    return ordered


def _mean(lines: Lines, part: Floats) -> None:
    part[:] = lines[0]
    for line in lines[1:]:
        part += line
    part *= np.float32(1.0) / np.float32(len(lines))


def _offsets(lines: Lines, keep: int) -> NDArray[np.int32]:
    """Rank of the first kept value: the window of `keep` ranks moves up while its next is nearer than its first."""
    n = len(lines)
    centre = (lines[(n - 1) // 2] + lines[n // 2]) * np.float32(0.5)
    first = np.zeros(len(centre), np.int32)
    for s in range(n - keep):
        first += lines[s + keep] - centre < centre - lines[s]
    return first
