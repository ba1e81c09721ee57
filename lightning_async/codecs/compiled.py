"""The family's inner loops compiled by numba: same arguments, same bytes as the numpy twins, several times faster.

Rules of this file: no allocation in a loop, no float maximum (LLVM does not vectorise one that must mind NaN; the bit
patterns of magnitudes are ordered like integers), no fused multiply-add (the twins round twice), every type
written out, slices handed to small inner functions (which LLVM vectorises). Only kernels.py imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from lightning_async.codecs.envelope import Array

F = TypeVar("F", bound=Callable[..., Any])
jit = cast(Callable[[F], F], numba.njit(cache=True, nogil=True, error_model="numpy"))

MAGNITUDE = np.int32(0x7FFFFFFF)


@jit
def row_sums(words: Array, keys: Array, sums: Array) -> None:
    """envelope.digest: sum of word * key modulo 2^64 per row."""
    for row in range(sums.size):
        total = np.uint64(0)
        for i in range(keys.size):
            total += words[row * keys.size + i] * keys[i]
        sums[row] = total


@jit
def quantise(
    x: Array,
    block: int,
    levels: int,
    largest: int,
    stochastic: bool,
    key: np.uint32,
    first: int,
    scales: Array,
    q: Array,
) -> None:
    """blocks.quantise."""
    bits = x.view(np.int32)
    limit = np.float32(levels)
    for b in range(scales.size):
        low, high = b * block, min((b + 1) * block, x.size)
        scales[b], inverse, beyond = _scale(_top(bits[low:high]), limit, largest)
        if stochastic:
            _round_by_chance(x[low:high], inverse, limit, first + low, key, q[low:high])
        elif beyond:
            _round_within(x[low:high], inverse, limit, q[low:high])
        else:
            _round(x[low:high], inverse, q[low:high])


@jit
def _top(bits: Array) -> np.int32:
    top: np.int32 = np.int32(0)
    for i in range(bits.size):
        top = max(top, np.int32(bits[i] & MAGNITUDE))
    return top


@jit
def _round(x: Array, inverse: np.float32, q: Array) -> None:
    for i in range(x.size):
        q[i] = np.int8(np.int32(np.rint(x[i] * inverse)))


@jit
def _round_within(x: Array, inverse: np.float32, limit: np.float32, q: Array) -> None:
    for i in range(x.size):
        q[i] = np.int8(np.int32(max(-limit, min(limit, np.rint(x[i] * inverse)))))


@jit
def _round_by_chance(x: Array, inverse: np.float32, limit: np.float32, first: int, key: np.uint32, q: Array) -> None:
    for i in range(x.size):
        h = np.uint32(np.uint32(first + i) * np.uint32(0x9E3779B1)) ^ key
        h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
        h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
        h ^= h >> np.uint32(16)
        y = np.floor(x[i] * inverse + np.float32(np.int32(h >> np.uint32(8))) * np.float32(2**-24))
        y = y if y < limit else limit
        y = y if y > -limit else -limit
        q[i] = np.int8(np.int32(y))


@jit
def _scale(top: np.int32, limit: np.float32, largest: int) -> tuple[np.uint16, np.float32, bool]:
    """A block's scale, its reciprocal, and whether numbers may round to beyond the limit."""
    if top == 0:
        return np.uint16(0), np.float32(0), False
    pair = np.empty(1, dtype=np.int32)
    pair[0] = top
    pair.view(np.float32)[0] /= limit
    upper = max((pair[0] + 0xFFFF) >> 16, 7 << 7)
    pair[0] = min(upper, largest) << 16
    return np.uint16(min(upper, largest)), np.float32(1) / pair.view(np.float32)[0], upper > largest


@jit
def dequantise(scales: Array, q: Array, block: int, out: Array) -> None:
    """blocks.dequantise."""
    pair = np.empty(1, dtype=np.uint32)
    for b in range(scales.size):
        low, high = b * block, min((b + 1) * block, out.size)
        pair[0] = np.uint32(scales[b]) << np.uint32(16)
        _times(q[low:high], pair.view(np.float32)[0], out[low:high])


@jit
def _times(q: Array, scale: np.float32, out: Array) -> None:
    for i in range(q.size):
        out[i] = np.float32(q[i]) * scale


@jit
def fold(q: Array, out: Array) -> None:
    """halves.fold of an even count."""
    for i in range(out.size):
        out[i] = np.uint8(np.uint8(q[2 * i] + 8) | np.uint8(np.uint8(q[2 * i + 1] + 8) << 4))


@jit
def unfold(pairs: Array, q: Array) -> None:
    """halves.unfold of an even count."""
    for i in range(pairs.size):
        q[2 * i] = np.int8(np.int8(pairs[i] & 15) - 8)
        q[2 * i + 1] = np.int8(np.int8(pairs[i] >> 4) - 8)


@jit
def rice_encode(values: Array, widths: Array, low: Array, unary: Array) -> None:
    """rice.encode: both bit strings, into zeroed bytes; `low` has eight bytes to spare."""
    at, one = np.int64(0), np.int64(-1)
    for i in range(values.size):
        width = np.int64(widths[i])
        part = (values[i] & ((np.int64(1) << width) - 1)) << (at & 7)
        byte = at >> 3
        while part:
            low[byte] |= np.uint8(part & 255)
            part >>= 8
            byte += 1
        at += width
        one += (values[i] >> width) + 1
        unary[one >> 3] |= np.uint8(1 << (one & 7))


@jit
def rice_decode(low: Array, unary: Array, widths: Array, out: Array) -> bool:
    """rice.decode: False unless `unary` holds exactly as many ones as there are widths, the last in its last byte."""
    at, byte, last, n = np.int64(0), np.int64(0), np.int64(-1), np.int64(0)
    for byte in range(unary.size):
        rest = np.int64(unary[byte])
        if rest == 0 and byte == unary.size - 1:
            return False
        while rest:
            if n == out.size:
                return False
            one = 8 * byte + _lowest(rest)
            rest &= rest - 1
            width = np.int64(widths[n])
            start = at >> 3
            window = np.int64(low[start]) | np.int64(low[start + 1]) << 8
            window |= np.int64(low[start + 2]) << 16 | np.int64(low[start + 3]) << 24
            part = (window >> (at & 7)) & ((np.int64(1) << width) - 1)
            out[n] = (one - last - 1) << width | part
            at += width
            last = one
            n += 1
    whole: bool = n == out.size
    return whole


@jit
def _lowest(byte: int) -> int:
    """The position of the lowest one in a byte that is not 0."""
    alone = byte & -byte
    return (alone > 15) * 4 + ((alone & 0xCC) != 0) * 2 + ((alone & 0xAA) != 0)
