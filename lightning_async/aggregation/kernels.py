"""What is computed per coordinate: in numpy here, the same compiled in compiled.py where numba is installed.

Both sort by the same network and add in the same order, so that they agree to the last bit (`gram`: to the rounding of
float64). Values must be finite: a NaN has no rank. With weights, the same networks find the smallest and the largest
kept value, and every value between them enters with its row's weight. Values that tie at such an edge, of which only
some are kept, all enter with that part of their weights: so the order of the rows does not matter.
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
        _weighted(rows, weights, selecting(len(rows), low, low + 1, high - 1, high), low, high - low, out)
    elif fast is not None:
        for rest in _left(out, _in_registers(rows, low, high - low, out)):
            fast.middle(_addresses(rows) + 4 * rest.start, network, low, high, out[rest])
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
        for rest in _left(out, _in_registers(rows, -1, keep, out)):
            fast.nearest(_addresses(rows) + 4 * rest.start, network, keep, out[rest])
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
        for rest in _left(out, _in_registers(rows, low, keep, out, narrow)):
            fast.weighted(_addresses(rows) + 4 * rest.start, narrow, network, low, keep, out[rest])
        return
    for values, part in _chunks(rows, out):
        lines = [line.copy() for line in values]
        _exchange(lines, network)
        first = _offsets(lines, keep) if low < 0 else np.full(len(part), low, np.int32)
        stack, places = np.stack(lines), first[None, :].astype(np.int64)
        below = np.take_along_axis(stack, places, 0)[0]
        above = np.take_along_axis(stack, places + keep - 1, 0)[0]
        _weigh(values, narrow, below, above, first.astype(np.float32), np.float32(keep), part)


def _weigh(
    values: Lines, weights: Floats, below: Floats, above: Floats, first: Floats, keep: np.float32, part: Floats
) -> None:
    """part = weighted mean of the `keep` values from rank `first` on, the smallest `below` and the largest `above`."""
    zero = np.float32(0.0)
    total, mass, low_mass, high_mass, low_ties, high_ties, to_low, to_high = np.zeros((8, len(part)), np.float32)
    for value, weight in zip(values, weights, strict=True):
        inside = (below < value) & (value < above)
        total += np.where(inside, value * weight, zero)
        mass += np.where(inside, weight, zero)
        for edge, tied, ties in ((below, low_mass, low_ties), (above, high_mass, high_ties)):
            tied += np.where(value == edge, weight, zero)
            ties += value == edge
        to_low += value <= below
        to_high += value < above
    alone = below == above
    lower = low_mass * (np.where(alone, keep, to_low - first) / low_ties)
    upper = np.where(alone, zero, high_mass * ((first + keep - to_high) / high_ties))
    part[:] = (total + below * lower + above * upper) / (mass + lower + upper)


def _in_registers(rows: Block, low: int, keep: int, out: Floats, weights: Floats | None = None) -> slice:
    """The coordinates that a kernel made for this number of rows has done: nearly all, or none."""
    registers = importlib.import_module(f"{__package__}.registers")
    if len(out) < registers.WORTHWHILE or len(rows) > registers.MOST_ROWS:
        return slice(0, 0)
    address = int(out.__array_interface__["data"][0])
    begin, width = -address % int(registers.LINE_BYTES) // 4, int(registers.WIDTH)
    count = (len(out) - begin) // width * width
    table = _addresses(rows) + 4 * begin
    if weights is None:
        registers.averaging(len(rows), low, keep)(table.ctypes.data, address + 4 * begin, count)
    else:
        wide = np.repeat(weights, width)
        made = registers.weighing(len(rows), low, keep)
        made(table.ctypes.data, wide.ctypes.data, address + 4 * begin, count)
    return slice(begin, begin + count)


def _left(out: Floats, done: slice) -> tuple[slice, slice]:
    """What is left of `out` before and after the coordinates that are done."""
    return slice(0, done.start), slice(done.stop, len(out))


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
