"""Numbers in blocks, each with its own scale: x = q * scale with whole q in -levels..levels.

A scale is a bfloat16 (the upper half of a float32), the block's largest magnitude / levels rounded up, at least 2^-120
(below that a reciprocal would overflow) and at most what keeps levels * scale finite; 0 for a block of zeros.
So |x - q * scale| <= scale / 2, and scale <= (1 + 2^-7) * max|x| / levels, or 2^-120. With a `key`, rounding is
stochastic: the expectation of q * scale is x, and |error| < scale. Its random numbers are a hash of position and key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from lightning_async.codecs import halves, kernels
from lightning_async.codecs.base import INFINITY
from lightning_async.codecs.envelope import Array

Key: TypeAlias = int | None

SMALLEST = 7 << 7
AT_ONCE = 1 << 18


def largest_scale(levels: int) -> int:
    """The upper half of the largest scale for which levels * scale is a float32."""
    return int(np.float32(np.finfo(np.float32).max / np.float64(levels)).view(np.uint32) >> 16)


def pieces(n: int, block: int) -> Iterator[tuple[slice, slice]]:
    """(numbers, scales) slices that cover n numbers, each small enough for the cache and starting with a block."""
    per = max(1, AT_ONCE // block)
    for b in range(0, -(-n // block), per):
        yield slice(b * block, min(n, (b + per) * block)), slice(b, b + per)


def quantise(x: Array, block: int, levels: int, scales: Array, q: Array, key: Key = None, first: int = 0) -> bool:
    """Writes `scales` (uint16 [ceil(n / block)]) and `q` (int8 [n]) of `x` (float32 [n]).

    `first` is the position of x[0] in the whole vector, which a `key`'s random numbers depend on. False where a number
    is not finite: what was written then means nothing.
    """
    fast = kernels.compiled()
    if fast is None:
        return _quantise(x, block, levels, scales, q, key, first)
    most, random = largest_scale(levels), (key is not None, np.uint32(key or 0))
    return int(fast.quantise(x, block, levels, most, *random, first, scales, q, False)) < INFINITY


def quantise_pairs(
    x: Array, block: int, levels: int, scales: Array, pairs: Array, key: Key = None, first: int = 0
) -> bool:
    """As `quantise`, with the numbers two in a byte (halves.py) in `pairs` (uint8 [ceil(n / 2)])."""
    fast = kernels.compiled()
    if fast is None:
        q = np.empty(x.size, dtype=np.int8)
        finite = _quantise(x, block, levels, scales, q, key, first)
        halves.fold(q, pairs)
        return finite
    most, random = largest_scale(levels), (key is not None, np.uint32(key or 0))
    return int(fast.quantise(x, block, levels, most, *random, first, scales, pairs.view(np.int8), True)) < INFINITY


def _quantise(x: Array, block: int, levels: int, scales: Array, q: Array, key: Key, first: int) -> bool:
    if not np.isfinite(x).all():
        q[:] = 0
        return False
    rows = np.zeros((scales.size, block), dtype=np.float32)
    rows.reshape(-1)[: x.size] = x
    top = np.abs(rows).max(axis=1)
    raw = ((top / np.float32(levels)).view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)
    scales[:] = np.where(top == 0, 0, np.clip(raw, SMALLEST, largest_scale(levels)))
    with np.errstate(divide="ignore"):
        inverse = np.where(top == 0, np.float32(0), np.float32(1) / floats(scales))
    scaled = (rows * inverse[:, None]).reshape(-1)[: x.size]
    whole = np.rint(scaled) if key is None else np.floor(scaled + uniform(first, x.size, key))
    q[:] = np.clip(whole, -levels, levels)
    return True


def dequantise(scales: Array, q: Array, block: int, out: Array) -> None:
    """Writes q * scale (float32 [n]) of checked scales."""
    fast = kernels.compiled()
    if fast is not None:
        fast.dequantise(scales, q, block, out)
        return
    np.multiply(q, np.repeat(floats(scales), block)[: q.size], out=out, dtype=np.float32, casting="unsafe")


def dequantise_pairs(scales: Array, pairs: Array, block: int, out: Array) -> None:
    """As `dequantise`, of numbers that lie two in a byte."""
    fast = kernels.compiled()
    if fast is not None:
        fast.dequantise_pairs(scales, pairs, block, out)
        return
    q = np.empty(out.size, dtype=np.int8)
    halves.unfold(pairs, q)
    dequantise(scales, q, block, out)


def floats(scales: Array) -> Array:
    """The float32 that each bfloat16 (uint16) stands for."""
    values: Array = (scales.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values


def uniform(first: int, n: int, key: int) -> Array:
    """n float32 in [0, 1): murmur3's finaliser of positions first .. first + n - 1 modulo 2^32, and the key."""
    with np.errstate(over="ignore"):
        h = np.arange(first, first + n, dtype=np.uint64).astype(np.uint32) * np.uint32(0x9E3779B1) ^ np.uint32(key)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        h ^= h >> np.uint32(16)
    values: Array = (h >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
    return values
