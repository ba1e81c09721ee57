"""The unweighted kernels of compiled.py for long vectors: the whole network in registers, made for one (n, rule).

For a known number of rows the sorting network is written out as vector instructions: 16 coordinates of every row are
loaded once, compared and exchanged in registers, averaged and stored. One such kernel takes about a second to compile
(then it is cached on disk), so kernels.py asks for it from `WORTHWHILE` coordinates on, and up to `MOST_ROWS` rows.
The operations and their order are those of the numpy path: the results are equal to the last bit.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightning_async.aggregation.networks import selecting, sorting

numba: Any = importlib.import_module("numba")
extending: Any = importlib.import_module("numba.extending")
ir: Any = importlib.import_module("llvmlite.ir")
F = TypeVar("F", bound=Callable[..., Any])
jit: Callable[[F], F] = numba.njit(cache=True, nogil=True, error_model="numpy")
WIDTH, AHEAD_BYTES = 16, 1024
WORTHWHILE, MOST_ROWS = 1 << 19, 32
LONG, VECTOR = ir.IntType(64), ir.VectorType(ir.FloatType(), WIDTH)


def _constant(value: float) -> Any:
    return ir.Constant(VECTOR, [float(np.float32(value))] * WIDTH)


def _load(builder: Any, table: Any, row: int, offset: Any) -> Any:
    """16 values of a row; the ones of `AHEAD_BYTES` later are asked for, so that they have arrived when needed."""
    base = builder.load(builder.gep(table, [ir.Constant(LONG, row)]))
    address = builder.add(base, offset)
    byte = ir.IntType(8).as_pointer()
    flags = [ir.Constant(ir.IntType(32), value) for value in (0, 3, 1)]
    kind = ir.FunctionType(ir.VoidType(), [byte, *(flag.type for flag in flags)])
    later = builder.inttoptr(builder.add(address, ir.Constant(LONG, AHEAD_BYTES)), byte)
    builder.call(builder.module.declare_intrinsic("llvm.prefetch", [byte], kind), [later, *flags])
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


def _nearest(builder: Any, lines: list[Any], keep: int) -> Any:
    """The window moves past rank s where `beyond[s]`; these hold for the first few s only: they say who is inside."""
    n = len(lines)
    _exchange(builder, lines, sorting(n))
    centre = builder.fmul(builder.fadd(lines[(n - 1) // 2], lines[n // 2]), _constant(0.5))
    beyond = [
        builder.fcmp_ordered("<", builder.fsub(lines[s + keep], centre), builder.fsub(centre, lines[s]))
        for s in range(n - keep)
    ]
    total = zero = _constant(0.0)
    for i, line in enumerate(lines):
        kept = builder.select(beyond[i], zero, line) if i < n - keep else line
        total = builder.fadd(total, builder.select(beyond[i - keep], kept, zero) if i >= keep else kept)
    return builder.fmul(total, _constant(np.float32(1.0) / np.float32(keep)))


@extending.intrinsic  # type: ignore[untyped-decorator]
def _sixteen(context: Any, table: Any, start: Any, out: Any, n: Any, low: Any, keep: Any) -> Any:
    """Coordinates start .. start + 15 of all rows -> out, as `averaging` says."""
    if not all(isinstance(value, numba.types.IntegerLiteral) for value in (n, low, keep)):
        return None
    rows, first, count = n.literal_value, low.literal_value, keep.literal_value

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        addresses = builder.inttoptr(args[0], LONG.as_pointer())
        offset = builder.mul(args[1], ir.Constant(LONG, 4))
        lines = [_load(builder, addresses, row, offset) for row in range(rows)]
        wide = _nearest(builder, lines, count) if first < 0 else _middle(builder, lines, first, first + count)
        builder.store(wide, builder.inttoptr(builder.add(args[2], offset), VECTOR.as_pointer()), align=4)
        return target.get_dummy_value()

    long = numba.types.int64
    return numba.types.void(long, long, long, n, low, keep), generate


@cache
def averaging(n: int, low: int, keep: int) -> Callable[[int, int, int], None]:
    """(address of the n rows' addresses, address of the result, d) -> writes the result; d is a multiple of `WIDTH`.

    The result is the mean of `keep` values: those from rank `low` on, or, where low < 0, the nearest to the median.
    """

    @jit
    def average(table: int, out: int, d: int) -> None:
        for start in range(0, d, WIDTH):
            _sixteen(table, start, out, n, low, keep)

    return average
