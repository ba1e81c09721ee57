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
STRIP = 4096
HUGE = np.int32(0x7F000000)  # from here on a scale may be cut, and numbers round to beyond the last level


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
    out: Array,
    paired: bool,
) -> np.int32:
    """blocks.quantise, to int8 [n]; where `paired`, blocks.quantise_pairs, which folds a strip while the cache has it.

    Some blocks at a time: their largest magnitudes, their scales (which then vectorise), their numbers.
    """
    strip = np.empty(max(STRIP, block) if paired else 0, dtype=np.int8)
    bits = x.view(np.int32)
    per = max(1, STRIP // block)
    tops, inverses = np.empty(per, dtype=np.int32), np.empty(per, dtype=np.float32)
    top: np.int32 = np.int32(0)
    for b in range(0, scales.size, per):
        some, low = min(per, scales.size - b), b * block
        high = min(low + some * block, x.size)
        for i in range(some):
            start = low + i * block
            tops[i] = _top(bits[start : min(start + block, high)])
        here = _top(tops[:some])
        top = max(top, here)
        _scales(tops[:some], np.float32(levels), largest, scales[b : b + some], inverses)
        q = strip[: high - low] if paired else out[low:high]
        if stochastic:
            _round_by_chance(x[low:high], block, inverses, np.float32(levels), first + low, key, q)
        elif here >= HUGE:
            _round_within(x[low:high], block, inverses, np.float32(levels), q)
        else:
            _round(x[low:high], block, inverses, q)
        if paired:
            _fold(q, out[low // 2 : (high + 1) // 2])
    return top


@jit
def top(bits: Array) -> np.int32:
    """base.finite: the largest magnitude, as bits."""
    return _top(bits)


@jit
def _top(bits: Array) -> np.int32:
    top: np.int32 = np.int32(0)
    for i in range(bits.size):
        top = max(top, np.int32(bits[i] & MAGNITUDE))
    return top


@jit
def _scales(tops: Array, limit: np.float32, largest: int, scales: Array, inverses: Array) -> None:
    """Each block's scale and its reciprocal; 0 and 0 for a block of zeros."""
    for i in range(tops.size):
        top = np.int32(tops[i])
        raw = np.float32(top.view(np.float32) / limit).view(np.int32)
        upper = min(max((raw + np.int32(0xFFFF)) >> np.int32(16), np.int32(7 << 7)), np.int32(largest))
        upper = upper if top != 0 else np.int32(0)
        scales[i] = np.uint16(upper)
        inverse = np.float32(1) / np.int32(np.int32(upper) << np.int32(16)).view(np.float32)
        inverses[i] = inverse if top != 0 else np.float32(0)


@jit
def _round(x: Array, block: int, inverses: Array, q: Array) -> None:
    """rint, by what is left of the digits behind the point once 1.5 * 2^23 was added."""
    for b in range((x.size + block - 1) // block):
        low, high = b * block, min((b + 1) * block, x.size)
        _round_block(x[low:high], np.float32(inverses[b]), q[low:high])


@jit
def _round_block(x: Array, inverse: np.float32, q: Array) -> None:
    for i in range(x.size):
        shifted = np.float32(np.float32(x[i] * inverse) + np.float32(12582912.0))
        q[i] = np.int8(shifted.view(np.int32) - np.int32(0x4B400000))


@jit
def _round_within(x: Array, block: int, inverses: Array, limit: np.float32, q: Array) -> None:
    for i in range(x.size):
        q[i] = np.int8(np.int32(max(-limit, min(limit, np.rint(x[i] * inverses[i // block])))))


@jit
def _round_by_chance(
    x: Array, block: int, inverses: Array, limit: np.float32, first: int, key: np.uint32, q: Array
) -> None:
    for low in range(0, x.size, block):
        inverse = np.float32(inverses[low // block])
        for i in range(low, min(low + block, x.size)):
            h = np.uint32(np.uint32(first + i) * np.uint32(0x9E3779B1)) ^ key
            h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
            h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
            h ^= h >> np.uint32(16)
            y = np.floor(x[i] * inverse + np.float32(np.int32(h >> np.uint32(8))) * np.float32(2**-24))
            y = y if y < limit else limit
            y = y if y > -limit else -limit
            q[i] = np.int8(np.int32(y))


@jit
def dequantise(scales: Array, q: Array, block: int, out: Array) -> None:
    """blocks.dequantise of int8 [n]."""
    for b in range(scales.size):
        low, high = b * block, min((b + 1) * block, out.size)
        _times(q[low:high], _float(scales[b]), out[low:high])


@jit
def dequantise_pairs(scales: Array, pairs: Array, block: int, out: Array) -> None:
    """blocks.dequantise_pairs."""
    q = np.empty(block, dtype=np.int8)
    for b in range(scales.size):
        low, high = b * block, min((b + 1) * block, out.size)
        _unfold(pairs[low // 2 : high // 2], q)
        if high & 1:
            q[high - low - 1] = np.int8(np.int8(pairs[high // 2] & 15) - 8)
        _times(q[: high - low], _float(scales[b]), out[low:high])


@jit
def _float(scale: np.uint16) -> np.float32:
    value: np.float32 = np.int32(np.int32(scale) << np.int32(16)).view(np.float32)
    return value


@jit
def _times(q: Array, scale: np.float32, out: Array) -> None:
    for i in range(q.size):
        out[i] = np.float32(q[i]) * scale


@jit
def _fold(q: Array, out: Array) -> None:
    """halves.fold."""
    for i in range(q.size // 2):
        out[i] = np.uint8(np.uint8(q[2 * i] + 8) | np.uint8(np.uint8(q[2 * i + 1] + 8) << 4))
    if q.size & 1:
        out[q.size // 2] = np.uint8(np.uint8(q[q.size - 1] + 8) | np.uint8(8 << 4))


@jit
def _unfold(pairs: Array, q: Array) -> None:
    """halves.unfold of an even count."""
    for i in range(pairs.size):
        q[2 * i] = np.int8(np.int8(pairs[i] & 15) - 8)
        q[2 * i + 1] = np.int8(np.int8(pairs[i] >> 4) - 8)


@jit
def top16(bits: Array) -> np.int16:
    """dense.top16: the largest of int16 without their signs."""
    top: np.int16 = np.int16(0)
    for i in range(bits.size):
        top = max(top, np.int16(bits[i] & np.int16(0x7FFF)))
    return top
