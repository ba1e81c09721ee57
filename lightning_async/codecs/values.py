"""How the numbers that a sparse codec keeps are written: `fp16`, `bf16`, `int8`, `int4`, `2bit`, or a codec of its own.

Survivors of a selection are all large, so their magnitudes crowd just above the smallest one. The integer formats hence
write, per block, a scale and the smallest level, then signs as a bit string and each level's distance from the smallest
as a Rice number: within 2 % of the levels' entropy on heavy-tailed gradients, where 8 bits would be 20 % above it.
`2bit` is a sign and one of two magnitudes per block; which ones are large is a set with few members, and its gaps are
Rice numbers too.

    int8, int4   u8 width · scales (bfloat16 each) · smallest levels (u8 each) · signs · distances (rice)
    2bit         u8 width · small magnitudes (bfloat16 each) · ratios (u8 each) · signs · u64 large ones · gaps (rice)

A ratio r stands for (1 + (r & 15) / 16) * 2^(r >> 4): the large magnitude is that many times the small one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lightning_async.codecs import blocks, kernels, rice
from lightning_async.codecs.base import Codec
from lightning_async.codecs.dense import bf16, fp16
from lightning_async.codecs.envelope import Array, Reader
from lightning_async.codecs.integers import check_scales
from lightning_async.codecs.memory import as_tensor
from lightning_async.errors import ConfigError, PayloadError

LARGE = np.float32(2.0)


@dataclass(frozen=True, kw_only=True)
class Values:
    """One way to write n float32. `encode` also returns what `decode` will give, so that nobody has to decode."""

    code: int
    encode: Callable[[Array], tuple[bytes, Array]]
    decode: Callable[[Reader, int], Array]
    most_bytes: Callable[[int], int]


def by(codec: Codec, code: int = 0) -> Values:
    """The numbers as a payload of `codec`, after its length (u64). ConfigError for a codec with a state."""
    if codec.init(1):
        raise ConfigError(
            f"the kept numbers cannot be coded by {codec.spec}, which has a state; wrap the whole instead"
        )

    def encode(x: Array) -> tuple[bytes, Array]:
        payload, _ = codec.encode(as_tensor(x), {})
        return struct.pack("<Q", memoryview(payload).nbytes) + bytes(payload), codec.decode(payload, x.size).numpy()

    def decode(reader: Reader, n: int) -> Array:
        inner = reader.take(min(reader.number("<u8"), codec.max_bytes(n) + 1))
        vector: Array = codec.decode(inner.data, n).numpy()
        return vector

    return Values(code=code, encode=encode, decode=decode, most_bytes=lambda n: 8 + codec.max_bytes(n))


def integers(code: int, levels: int, block: int) -> Values:
    """Whole levels -levels..levels of a scale per block: |error| <= scale / 2."""

    def encode(x: Array) -> tuple[bytes, Array]:
        n = x.size
        scales, q = np.empty(-(-n // block), dtype="<u2"), np.empty(n, dtype=np.int8)
        out = np.empty(n, dtype=np.float32)
        blocks.quantise(x, block, levels, scales, q)
        blocks.dequantise(scales, q, block, out)
        least, distance = _distances(q, block)
        width = rice.best_width(distance)
        coded = rice.encode(distance, np.full(n, width, np.uint8))
        head = bytes([width]) + scales.tobytes() + least.tobytes()
        return head + _bits(q < 0) + coded, out

    def decode(reader: Reader, n: int) -> Array:
        width, scales, least, negative = _head(reader, n, block)
        check_scales(reader.name, scales, levels)
        distance = rice.decode(reader, np.full(n, width, np.uint8), n * levels >> width)
        level = distance + np.repeat(least.astype(np.int64), block)[:n]
        if n and int(level.max()) > levels:
            raise PayloadError(f"a {reader.name} payload has level {int(level.max())} of {levels}; refuse it")
        q, out = np.where(negative, -level, level).astype(np.int8), np.empty(n, dtype=np.float32)
        blocks.dequantise(scales, q, block, out)
        return out

    return Values(code=code, encode=encode, decode=decode, most_bytes=lambda n: 16 + 3 * (n // block + 1) + n * 12 // 8)


def two_bit(code: int, block: int) -> Values:
    """A sign and one of two magnitudes per block: the means of those up to, and beyond, twice the block's mean."""

    def encode(x: Array) -> tuple[bytes, Array]:
        n, size = x.size, np.abs(x)
        starts = np.arange(0, n, block)
        large = size / LARGE > np.repeat(_means(size, np.ones(n, dtype=bool), starts), block)[:n]
        small, ratio = _magnitudes(_means(size, ~large, starts), _means(size, large, starts))
        members = np.flatnonzero(large)
        gaps = np.diff(members, prepend=-1) - 1
        width = rice.best_width(gaps)
        head = bytes([width]) + small.tobytes() + ratio.tobytes() + _bits(x < 0) + struct.pack("<Q", members.size)
        coded = rice.encode(gaps, np.full(gaps.size, width, np.uint8))
        return head + coded, _signed(small, ratio, large, x < 0, block)

    def decode(reader: Reader, n: int) -> Array:
        width, small, ratio, negative = _head(reader, n, block)
        count = reader.number("<u8")
        if count > n:
            raise PayloadError(f"a {reader.name} payload has {count} large numbers of {n}; refuse it")
        members = np.cumsum(rice.decode(reader, np.full(count, width, np.uint8), n >> width) + 1) - 1
        if count and int(members[-1]) >= n:
            raise PayloadError(f"a {reader.name} payload has a large number beyond its {n}; refuse it")
        large = np.zeros(n, dtype=bool)
        large[members] = True
        values = _signed(small, ratio, large, negative, block)
        if not np.isfinite(values).all():
            raise PayloadError(f"a {reader.name} payload has a magnitude beyond float32; refuse it")
        return values

    return Values(code=code, encode=encode, decode=decode, most_bytes=lambda n: 32 + 3 * (n // block + 1) + n * 5 // 8)


VALUES: dict[str, Values] = {
    "fp16": by(fp16(), 1),
    "bf16": by(bf16(), 2),
    "int8": integers(3, 127, 256),
    "int4": integers(4, 7, 64),
    "2bit": two_bit(5, 64),
}


def _distances(q: Array, block: int) -> tuple[Array, Array]:
    """Each block's smallest magnitude (uint8), and how far each magnitude lies above its block's (int64 [n])."""
    fast, n = kernels.compiled_codes(), q.size
    if fast is not None:
        least, distance = np.empty(-(-n // block), dtype=np.uint8), np.empty(n, dtype=np.int64)
        fast.distances(q, block, least, distance)
        return least, distance
    level = np.abs(q).astype(np.int64)
    smallest = np.minimum.reduceat(level, np.arange(0, n, block)) if n else level
    return smallest.astype(np.uint8), level - np.repeat(smallest, block)[:n]


def _head(reader: Reader, n: int, block: int) -> tuple[int, Array, Array, Array]:
    """width, the blocks' 16-bit and 8-bit fields, and which numbers are negative."""
    width, count = reader.number("u1"), -(-n // block)
    if width > rice.WIDEST:
        raise PayloadError(f"a {reader.name} payload has width {width}, at most {rice.WIDEST} is used; refuse it")
    wide, narrow, signs = reader.array(count, "<u2"), reader.take(count), reader.take((n + 7) // 8)
    return width, wide, narrow, np.unpackbits(signs, count=n, bitorder="little").view(bool)


def _bits(flags: Array) -> bytes:
    return np.packbits(flags, bitorder="little").tobytes()


def _means(x: Array, chosen: Array, starts: Array) -> Array:
    """Per block the mean of the chosen (float32); 0 where none is."""
    if x.size == 0:
        return np.zeros(0, dtype=np.float32)
    counts = np.add.reduceat(chosen, starts, dtype=np.int64)
    sums = np.add.reduceat(np.where(chosen, x, np.float32(0)), starts, dtype=np.float64)
    return (sums / np.maximum(counts, 1)).astype(np.float32)


def _magnitudes(small: Array, large: Array) -> tuple[Array, Array]:
    """The bfloat16 (uint16) nearest to each small magnitude, and the ratio code (uint8) nearest to large / small."""
    narrow = as_tensor(np.minimum(small, np.float32(3e38))).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    base = blocks.floats(narrow)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where((base > 0) & (large > 0), np.minimum(large, 3e38) / base, 1.0)
    power = np.clip(np.floor(np.log2(np.maximum(ratio, 1.0))), 0, 15)
    code = np.clip(np.rint((ratio / 2.0**power - 1) * 16) + power * 16, 0, 255)
    beyond = base.astype(np.float64) * _ratios(code.astype(np.int64)) > np.finfo(np.float32).max
    return narrow.astype("<u2"), (code - beyond).astype(np.uint8)


def _ratios(code: Array) -> Array:
    values: Array = (1 + (code & 15) / 16) * 2.0 ** (code >> 4)
    return values


def _signed(small: Array, ratio: Array, large: Array, negative: Array, block: int) -> Array:
    base = blocks.floats(small)
    with np.errstate(over="ignore", invalid="ignore"):
        big = base * _ratios(ratio.astype(np.int64)).astype(np.float32)
    n = large.size
    size = np.where(large, np.repeat(big, block)[:n], np.repeat(base, block)[:n])
    values: Array = np.where(negative, -size, size)
    return values
