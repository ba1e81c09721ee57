"""The kernels of kernels.py compiled by numba: same result to the last bit, several times faster.

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
F = TypeVar("F", bound=Callable[..., Any])
Floats = NDArray[np.float32]
LANES = 128
jit: Callable[[F], F] = numba.njit(cache=True, nogil=True, error_model="numpy")


@extending.intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, address: Any) -> Any:
    """int -> float*: lets a kernel take any number of separate rows without one compilation per number."""

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], target.get_value_type(signature.return_type))

    return numba.types.CPointer(numba.types.float32)(address), generate


@jit
def _load(addresses: NDArray[np.int64], d: int, start: int, lines: Floats) -> None:
    for i in range(len(addresses)):
        row = numba.carray(_pointer(addresses[i]), d)
        line = lines[i]
        for x in range(min(LANES, d - start)):
            line[x] = row[start + x]


@jit
def _exchange(lines: Floats, network: NDArray[np.int64]) -> None:
    for p in range(len(network)):
        a, b = lines[network[p, 0]], lines[network[p, 1]]
        for x in range(LANES):
            u, v = a[x], b[x]
            a[x] = min(u, v)
            b[x] = max(u, v)


@jit
def _exchange_pairs(lines: Floats, shares: Floats, network: NDArray[np.int64]) -> None:
    for p in range(len(network)):
        i, k = network[p, 0], network[p, 1]
        a, b, s, t = lines[i], lines[k], shares[i], shares[k]
        for x in range(LANES):
            u, v, g, h = a[x], b[x], s[x], t[x]
            swap = (v < u) | ((v == u) & (h < g))
            a[x] = v if swap else u
            b[x] = u if swap else v
            s[x] = h if swap else g
            t[x] = g if swap else h


@jit
def _offsets(lines: Floats, keep: int, first: NDArray[np.int32]) -> None:
    n = len(lines)
    below, above = lines[(n - 1) // 2], lines[n // 2]
    first[:] = 0
    for s in range(n - keep):
        low, high = lines[s], lines[s + keep]
        for x in range(LANES):
            centre = (below[x] + above[x]) * np.float32(0.5)
            first[x] += np.int32(1) if high[x] - centre < centre - low[x] else np.int32(0)


@jit
def middle(addresses: NDArray[np.int64], network: NDArray[np.int64], low: int, high: int, out: Floats) -> None:
    """out = mean of the values of rank low .. high - 1."""
    lines, total = np.zeros((len(addresses), LANES), np.float32), np.zeros(LANES, np.float32)
    scale = np.float32(1.0) / np.float32(high - low)
    for start in range(0, len(out), LANES):
        _load(addresses, len(out), start, lines)
        _exchange(lines, network)
        total[:] = lines[low]
        for i in range(low + 1, high):
            line = lines[i]
            for x in range(LANES):
                total[x] += line[x]
        for x in range(min(LANES, len(out) - start)):
            out[start + x] = total[x] * scale


@jit
def nearest(addresses: NDArray[np.int64], network: NDArray[np.int64], keep: int, out: Floats) -> None:
    """out = mean of the `keep` values nearest to the median."""
    lines, total = np.zeros((len(addresses), LANES), np.float32), np.zeros(LANES, np.float32)
    first = np.zeros(LANES, np.int32)
    scale = np.float32(1.0) / np.float32(keep)
    for start in range(0, len(out), LANES):
        _load(addresses, len(out), start, lines)
        _exchange(lines, network)
        _offsets(lines, keep, first)
        total[:] = np.float32(0.0)
        for i in range(len(lines)):
            line = lines[i]
            for x in range(LANES):
                total[x] += line[x] if (first[x] <= i) & (i < first[x] + keep) else np.float32(0.0)
        for x in range(min(LANES, len(out) - start)):
            out[start + x] = total[x] * scale


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
    shape = (len(addresses), LANES)
    lines, shares = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    total, mass, first = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.full(LANES, low, np.int32)
    for start in range(0, len(out), LANES):
        _load(addresses, len(out), start, lines)
        for i in range(len(lines)):
            shares[i, :] = weights[i]
        _exchange_pairs(lines, shares, network)
        if low < 0:
            _offsets(lines, keep, first)
        total[:] = np.float32(0.0)
        mass[:] = np.float32(0.0)
        for i in range(len(lines)):
            line, share = lines[i], shares[i]
            for x in range(LANES):
                inside = (first[x] <= i) & (i < first[x] + keep)
                total[x] += line[x] * share[x] if inside else np.float32(0.0)
                mass[x] += share[x] if inside else np.float32(0.0)
        for x in range(min(LANES, len(out) - start)):
            out[start + x] = total[x] / mass[x]
