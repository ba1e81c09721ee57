"""The kernels of kernels.py compiled by numba: the same results, several times faster.

Rows arrive as addresses, so one compilation serves any number of rows. Work goes through a scratch of [n, LANES] that
stays in the innermost cache while n streams are read; every inner loop over lanes becomes vector instructions.
Nothing is compiled until the first call; the machine code is cached on disk. The GIL is released.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

numba: Any = importlib.import_module("numba")
extending: Any = importlib.import_module("numba.extending")
ir: Any = importlib.import_module("llvmlite.ir")
F = TypeVar("F", bound=Callable[..., Any])
Floats = NDArray[np.float32]
LANES = 128
GRAM_LANES = 256
AHEAD = 2 * LANES
LINE_BYTES = 64
jit: Callable[[F], F] = numba.njit(cache=True, nogil=True, error_model="numpy")
summing: Callable[[F], F] = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})


def _pointer_to(kind: Any) -> Any:
    """int -> pointer: lets a kernel take any number of separate rows without one compilation per number."""

    @extending.intrinsic  # type: ignore[untyped-decorator]
    def pointer(context: Any, address: Any) -> Any:
        def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], target.get_value_type(signature.return_type))

        return numba.types.CPointer(kind)(address), generate

    return pointer


_floats_at = _pointer_to(numba.types.float32)


def ask_for_line(builder: Any, address: Any) -> None:
    """Emit LLVM's prefetch, for reading, of the cache line at `address` (int64)."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    flags = [ir.Constant(ir.IntType(32), value) for value in (0, 3, 1)]
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, *(flag.type for flag in flags)])
    builder.call(builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind), [pointer, *flags])


@extending.intrinsic  # type: ignore[untyped-decorator]
def _prefetch(context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, any address, while the processor sorts what it has."""

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        ask_for_line(builder, args[0])
        return target.get_dummy_value()

    return numba.types.void(numba.types.int64), generate


@jit
def _load(addresses: NDArray[np.int64], start: int, count: int, lines: Floats) -> None:
    for i in range(len(addresses)):
        here, line = addresses[i] + 4 * start, lines[i]
        row = numba.carray(_floats_at(here), LANES)
        for x in range(count):
            line[x] = row[x]
        for x in range(0, 4 * LANES, LINE_BYTES):
            _prefetch(here + 4 * AHEAD + x)


@jit
def _exchange(lines: Floats, network: NDArray[np.int64]) -> None:
    for p in range(len(network)):
        a, b = lines[network[p, 0]], lines[network[p, 1]]
        for x in range(LANES):
            u, v = a[x], b[x]
            a[x] = min(u, v)
            b[x] = max(u, v)


# Ranks are float32 here: numba widens int32 sums to int64, which halves the lanes of a vector instruction.
@jit
def _offsets(lines: Floats, keep: int, first: Floats) -> None:
    n = len(lines)
    below, above = lines[(n - 1) // 2], lines[n // 2]
    first[:] = np.float32(0.0)
    for s in range(n - keep):
        low, high = lines[s], lines[s + keep]
        for x in range(LANES):
            centre = (below[x] + above[x]) * np.float32(0.5)
            first[x] += np.float32(1.0) if high[x] - centre < centre - low[x] else np.float32(0.0)


@jit
def middle(addresses: NDArray[np.int64], network: NDArray[np.int64], low: int, high: int, out: Floats) -> None:
    """out = mean of the values of rank low .. high - 1."""
    lines, total = np.zeros((len(addresses), LANES), np.float32), np.zeros(LANES, np.float32)
    scale = np.float32(1.0) / np.float32(high - low)
    for start in range(0, len(out), LANES):
        count = min(LANES, len(out) - start)
        _load(addresses, start, count, lines)
        _exchange(lines, network)
        total[:] = lines[low]
        for i in range(low + 1, high):
            line = lines[i]
            for x in range(LANES):
                total[x] += line[x]
        part = out[start : start + count]
        for x in range(count):
            part[x] = total[x] * scale


@jit
def nearest(addresses: NDArray[np.int64], network: NDArray[np.int64], keep: int, out: Floats) -> None:
    """out = mean of the `keep` values nearest to the median."""
    lines, total = np.zeros((len(addresses), LANES), np.float32), np.zeros(LANES, np.float32)
    first, width = np.zeros(LANES, np.float32), np.float32(keep)
    scale = np.float32(1.0) / np.float32(keep)
    for start in range(0, len(out), LANES):
        count = min(LANES, len(out) - start)
        _load(addresses, start, count, lines)
        _exchange(lines, network)
        _offsets(lines, keep, first)
        total[:] = np.float32(0.0)
        for i in range(len(lines)):
            line, rank = lines[i], np.float32(i)
            if len(lines) - keep <= i < keep:
                for x in range(LANES):
                    total[x] += line[x]
            else:
                for x in range(LANES):
                    inside = (first[x] <= rank) & (rank < first[x] + width)
                    total[x] += line[x] if inside else np.float32(0.0)
        part = out[start : start + count]
        for x in range(count):
            part[x] = total[x] * scale


@jit
def _bounds(lines: Floats, low: int, keep: int, first: Floats, below: Floats, above: Floats) -> None:
    """The smallest and the largest kept value: ranks low .. low + keep - 1, or first .. first + keep - 1 if low < 0."""
    if low >= 0:
        below[:] = lines[low]
        above[:] = lines[low + keep - 1]
        return
    for s in range(len(lines) - keep + 1):
        bottom, top, rank = lines[s], lines[s + keep - 1], np.float32(s)
        for x in range(LANES):
            below[x] = bottom[x] if first[x] == rank else below[x]
            above[x] = top[x] if first[x] == rank else above[x]


@jit
def weighted(
    addresses: NDArray[np.int64],
    weights: Floats,
    network: NDArray[np.int64],
    low: int,
    keep: int,
    out: Floats,
) -> None:
    """out = weighted mean of `keep` values: from rank `low`, or, where `low` < 0, the ones nearest to the median."""
    n, one, zero = len(addresses), np.float32(1.0), np.float32(0.0)
    rows, lines = np.zeros((n, LANES), np.float32), np.zeros((n, LANES), np.float32)
    sums = np.zeros((8, LANES), np.float32)
    total, mass, low_mass, high_mass, low_ties, high_ties, to_low, to_high = sums
    below, above = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    first, width = np.full(LANES, low, np.float32), np.float32(keep)
    for start in range(0, len(out), LANES):
        count = min(LANES, len(out) - start)
        _load(addresses, start, count, rows)
        lines[:] = rows
        _exchange(lines, network)
        if low < 0:
            _offsets(lines, keep, first)
        _bounds(lines, low, keep, first, below, above)
        sums[:] = zero
        for i in range(n):
            row, weight = rows[i], weights[i]
            for x in range(LANES):
                v, a, b = row[x], below[x], above[x]
                inside = (a < v) & (v < b)
                total[x] += v * weight if inside else zero
                mass[x] += weight if inside else zero
                low_mass[x] += weight if v == a else zero
                low_ties[x] += one if v == a else zero
                to_low[x] += one if v <= a else zero
                high_mass[x] += weight if v == b else zero
                high_ties[x] += one if v == b else zero
                to_high[x] += one if v < b else zero
        part = out[start : start + count]
        for x in range(count):
            alone = below[x] == above[x]
            lower = low_mass[x] * ((width if alone else to_low[x] - first[x]) / low_ties[x])
            upper = zero if alone else high_mass[x] * ((first[x] + width - to_high[x]) / high_ties[x])
            part[x] = (total[x] + below[x] * lower + above[x] * upper) / (mass[x] + lower + upper)


@jit
def weighted_sum(addresses: NDArray[np.int64], coefficients: Floats, scale: np.float32, out: Floats) -> None:
    """out = scale * sum_i coefficients[i] * row i."""
    lines, total = np.zeros((len(addresses), LANES), np.float32), np.zeros(LANES, np.float32)
    for start in range(0, len(out), LANES):
        count = min(LANES, len(out) - start)
        _load(addresses, start, count, lines)
        total[:] = np.float32(0.0)
        for i in range(len(lines)):
            line, coefficient = lines[i], coefficients[i]
            for x in range(LANES):
                total[x] += line[x] * coefficient
        part = out[start : start + count]
        for x in range(count):
            part[x] = total[x] * scale


@summing
def _products(lines: NDArray[np.float64], i: int, k: int, total: NDArray[np.float64]) -> None:
    a, b, c, d = lines[i], lines[i + 1], lines[k], lines[k + 1]
    ac, ad, bc, bd = 0.0, 0.0, 0.0, 0.0
    for x in range(GRAM_LANES):
        ac += a[x] * c[x]
        ad += a[x] * d[x]
        bc += b[x] * c[x]
        bd += b[x] * d[x]
    total[i, k] += ac
    total[i, k + 1] += ad
    total[i + 1, k] += bc
    total[i + 1, k + 1] += bd


@jit
def gram(addresses: NDArray[np.int64], d: int, total: NDArray[np.float64]) -> None:
    """total += the Gram matrix of the rows, its upper half, in tiles of 2 x 2; total is [m, m] with m even, m >= n."""
    n, m = len(addresses), len(total)
    lines = np.zeros((m, GRAM_LANES))
    for start in range(0, d, GRAM_LANES):
        count = min(GRAM_LANES, d - start)
        for i in range(n):
            here, line = addresses[i] + 4 * start, lines[i]
            row = numba.carray(_floats_at(here), GRAM_LANES)
            for x in range(count):
                line[x] = row[x]
            for x in range(0, 4 * GRAM_LANES, LINE_BYTES):
                _prefetch(here + 4 * AHEAD + x)
            line[count:] = 0.0
        for i in range(0, m, 2):
            for k in range(i, m, 2):
                _products(lines, i, k, total)
