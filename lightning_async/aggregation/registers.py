"""The coordinate-wise kernels of compiled.py for long vectors: the whole network in registers, made for one (n, rule).

For a known number of rows the sorting network is written out as vector instructions: 16 coordinates of every row are
loaded once, compared and exchanged in registers, averaged and stored past the cache, whole lines at a time, so that the
result's old memory is not read first. One such kernel takes about a second to compile (then it is cached on disk), so
kernels.py asks for it from `WORTHWHILE` coordinates on, and up to `MOST_ROWS` rows.
The operations and their order are those of the numpy path: the results are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_async.aggregation.compiled import LINE_BYTES, ask_for_line, extending, ir, jit, numba
from lightning_async.aggregation.networks import selecting, sorting

WIDTH, AHEAD_BYTES = 16, 1024
WORTHWHILE, MOST_ROWS = 1 << 19, 32
LONG, VECTOR = ir.IntType(64), ir.VectorType(ir.FloatType(), WIDTH)


def _constant(value: float) -> Any:
    return ir.Constant(VECTOR, [float(np.float32(value))] * WIDTH)


def _load(builder: Any, table: Any, row: int, offset: Any) -> Any:
    """16 values of a row; the ones of `AHEAD_BYTES` later are asked for, so that they have arrived when needed."""
    base = builder.load(builder.gep(table, [ir.Constant(LONG, row)]))
    address = builder.add(base, offset)
    ask_for_line(builder, builder.add(address, ir.Constant(LONG, AHEAD_BYTES)))
    return builder.load(builder.inttoptr(address, VECTOR.as_pointer()), align=4)


def _exchange(builder: Any, lines: list[Any], network: NDArray[np.int64]) -> None:
    for i, k in network.tolist():
        a, b = lines[i], lines[k]
        swap = builder.fcmp_ordered("<", b, a)
        lines[i], lines[k] = builder.select(swap, b, a), builder.select(swap, a, b)


def _middle(builder: Any, lines: list[Any], low: int, high: int) -> Any:
    _exchange(builder, lines, selecting(len(lines), low, high))
    total = lines[low]
    for line in lines[low + 1 : high]:
        total = builder.fadd(total, line)
    return builder.fmul(total, _constant(np.float32(1.0) / np.float32(high - low)))


def _beyond(builder: Any, lines: list[Any], keep: int) -> list[Any]:
    """For each s: whether the window of `keep` sorted values moves past rank s. True for the first few s only."""
    n = len(lines)
    centre = builder.fmul(builder.fadd(lines[(n - 1) // 2], lines[n // 2]), _constant(0.5))
    return [
        builder.fcmp_ordered("<", builder.fsub(lines[s + keep], centre), builder.fsub(centre, lines[s]))
        for s in range(n - keep)
    ]


def _nearest(builder: Any, lines: list[Any], keep: int) -> Any:
    n = len(lines)
    _exchange(builder, lines, sorting(n))
    beyond = _beyond(builder, lines, keep)
    total = zero = _constant(0.0)
    for i, line in enumerate(lines):
        kept = builder.select(beyond[i], zero, line) if i < n - keep else line
        total = builder.fadd(total, builder.select(beyond[i - keep], kept, zero) if i >= keep else kept)
    return builder.fmul(total, _constant(np.float32(1.0) / np.float32(keep)))


def _edges(builder: Any, lines: list[Any], low: int, keep: int) -> tuple[Any, Any, Any]:
    """(smallest kept value, largest kept value, rank of the smallest) of lines, which are sorted as far as needed."""
    if low >= 0:
        _exchange(builder, lines, selecting(len(lines), low, low + 1, low + keep - 1, low + keep))
        return lines[low], lines[low + keep - 1], _constant(low)
    _exchange(builder, lines, sorting(len(lines)))
    below, above, first = lines[0], lines[keep - 1], _constant(0.0)
    for s, moved in enumerate(_beyond(builder, lines, keep)):
        below = builder.select(moved, lines[s + 1], below)
        above = builder.select(moved, lines[s + keep], above)
        first = builder.select(moved, _constant(s + 1), first)
    return below, above, first


def _weighted(builder: Any, lines: list[Any], weights: list[Any], low: int, keep: int) -> Any:
    """As `kernels._weigh`."""
    below, above, first = _edges(builder, list(lines), low, keep)
    zero, one, sums = _constant(0.0), _constant(1.0), [_constant(0.0)] * 8
    for line, weight in zip(lines, weights, strict=True):
        at_low, at_high = builder.fcmp_ordered("==", line, below), builder.fcmp_ordered("==", line, above)
        past, short = builder.fcmp_ordered("<", below, line), builder.fcmp_ordered("<", line, above)
        inside, to_low = builder.and_(past, short), builder.not_(past)
        parts = (inside, inside, at_low, at_high, at_low, at_high, to_low, short)
        values = (builder.fmul(line, weight), weight, weight, weight, one, one, one, one)
        sums = [
            builder.fadd(total, builder.select(part, value, zero))
            for total, part, value in zip(sums, parts, values, strict=True)
        ]
    total, mass, low_mass, high_mass, low_ties, high_ties, to_low, to_high = sums
    alone, width = builder.fcmp_ordered("==", below, above), _constant(keep)
    kept_low = builder.select(alone, width, builder.fsub(to_low, first))
    kept_high = builder.fsub(builder.fadd(first, width), to_high)
    lower = builder.fmul(low_mass, builder.fdiv(kept_low, low_ties))
    upper = builder.select(alone, zero, builder.fmul(high_mass, builder.fdiv(kept_high, high_ties)))
    total = builder.fadd(builder.fadd(total, builder.fmul(below, lower)), builder.fmul(above, upper))
    return builder.fdiv(total, builder.fadd(builder.fadd(mass, lower), upper))


@extending.intrinsic  # type: ignore[untyped-decorator]
def _sixteen(context: Any, table: Any, weights: Any, start: Any, out: Any, n: Any, low: Any, keep: Any) -> Any:
    """Coordinates start .. start + 15 of all rows -> out, as `averaging` says; by `weights` where that is not 0."""
    if not all(isinstance(value, numba.types.IntegerLiteral) for value in (n, low, keep)):
        return None
    rows, first, count = n.literal_value, low.literal_value, keep.literal_value
    plain = isinstance(weights, numba.types.IntegerLiteral)

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        addresses = builder.inttoptr(args[0], LONG.as_pointer())
        offset = builder.mul(args[2], ir.Constant(LONG, 4))
        lines = [_load(builder, addresses, row, offset) for row in range(rows)]
        if not plain:
            heavy = builder.inttoptr(args[1], VECTOR.as_pointer())
            each = [builder.load(builder.gep(heavy, [ir.Constant(LONG, row)]), align=4) for row in range(rows)]
            wide = _weighted(builder, lines, each, first, count)
        else:
            wide = _nearest(builder, lines, count) if first < 0 else _middle(builder, lines, first, first + count)
        place = builder.inttoptr(builder.add(args[3], offset), VECTOR.as_pointer())
        stored = builder.store(wide, place, align=LINE_BYTES)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return target.get_dummy_value()

    long = numba.types.int64
    return numba.types.void(long, weights if plain else long, long, long, n, low, keep), generate


@cache
def averaging(n: int, low: int, keep: int) -> Callable[[int, int, int], None]:
    """(address of the n rows' addresses, address of the result, d) -> writes the result; d is a multiple of `WIDTH`,
    the result's address one of `LINE_BYTES`.

    The result is the mean of `keep` values: those from rank `low` on, or, where low < 0, the nearest to the median.
    """

    @jit
    def average(table: int, out: int, d: int) -> None:
        for start in range(0, d, WIDTH):
            _sixteen(table, 0, start, out, n, low, keep)

    return average


@cache
def weighing(n: int, low: int, keep: int) -> Callable[[int, int, int, int], None]:
    """As `averaging`, weighted; the second argument is the address of n x `WIDTH` weights, each row's repeated."""

    @jit
    def average(table: int, weights: int, out: int, d: int) -> None:
        for start in range(0, d, WIDTH):
            _sixteen(table, weights, start, out, n, low, keep)

    return average
