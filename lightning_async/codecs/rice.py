"""Golomb-Rice coding of whole numbers, without a loop over them in numpy.

A number v with width w has a low part, its last w bits, and a high part, v >> w. All low parts lie in one bit string,
w bits each; all high parts in another, in unary: as many zeros as the high part, then a one. Bits fill bytes from the
least significant. As bytes:

    u32 bytes of the unary string · low parts, padded to a byte · unary string, padded to a byte

Widths are not written: the decoder derives them. For numbers that are geometric with mean m, the width that makes
2^w about 0.7 m costs about 0.03 bits more than their entropy.
"""

from __future__ import annotations

import struct

import numpy as np

from lightning_async.codecs import kernels
from lightning_async.codecs.envelope import Array, Reader
from lightning_async.errors import PayloadError

WIDEST = 24


def best_width(values: Array) -> int:
    """The common width with the shortest code for `values`."""
    if values.size == 0:
        return 0
    near = int(np.log2(float(values.mean()) * 0.7 + 1))
    return min(range(max(0, near - 1), min(WIDEST, near + 1) + 1), key=lambda w: values.size * w + _high(values, w))


def encode(values: Array, widths: Array) -> bytes:
    """`values`: int64 [n], not negative. `widths`: uint8 [n], each at most 24."""
    unary = np.zeros((_high(values, widths) + values.size + 7) // 8, dtype=np.uint8)
    low = np.zeros((int(widths.sum(dtype=np.int64)) + 7) // 8 + 8, dtype=np.uint8)
    fast = kernels.compiled_codes()
    if fast is None:
        _put_low(values & ((1 << widths.astype(np.int64)) - 1), widths, low)
        _put_unary(values >> widths, unary)
    else:
        fast.rice_encode(values, widths, low, unary)
    return struct.pack("<I", unary.size) + low[:-8].tobytes() + unary.tobytes()


def decode(reader: Reader, widths: Array, most: int) -> Array:
    """The int64 [n] that were encoded with `widths`; their high parts add up to `most` at most, or PayloadError."""
    size = reader.number("<u4")
    if not widths.size <= 8 * size < most + widths.size + 8:
        raise PayloadError(
            f"a {reader.name} payload's unary string has {size} bytes, which no such numbers need; refuse it"
        )
    low = np.zeros((int(widths.sum(dtype=np.int64)) + 7) // 8 + 8, dtype=np.uint8)
    low[:-8] = reader.take(low.size - 8)
    unary = reader.take(size)
    values = np.empty(widths.size, dtype=np.int64)
    fast = kernels.compiled_codes()
    found = _get(low, unary, widths, values) if fast is None else fast.rice_decode(low, unary, widths, values)
    if not found:
        raise PayloadError(f"a {reader.name} payload's unary string does not hold {widths.size} numbers; refuse it")
    return values


def _high(values: Array, widths: int | Array) -> int:
    """The sum of the high parts."""
    fast = kernels.compiled_codes()
    if fast is None:
        return int((values >> widths).sum())
    return int(fast.high_by(values, widths) if isinstance(widths, np.ndarray) else fast.high(values, widths))


def _put_low(parts: Array, widths: Array, out: Array) -> None:
    words = np.zeros(out.size // 8 + 2, dtype=np.uint64)
    starts = np.cumsum(widths, dtype=np.int64) - widths
    shift = (starts & 63).astype(np.uint64)
    numbers = parts.astype(np.uint64)
    np.bitwise_or.at(words, starts >> 6, numbers << shift)
    np.bitwise_or.at(words, (starts >> 6) + 1, (numbers >> np.uint64(1)) >> (np.uint64(63) - shift))
    out[:] = words.astype("<u8").view(np.uint8)[: out.size]


def _put_unary(high: Array, out: Array) -> None:
    bits = np.zeros(8 * out.size, dtype=np.uint8)
    bits[np.cumsum(high + 1) - 1] = 1
    out[:] = np.packbits(bits, bitorder="little")


def _get(low: Array, unary: Array, widths: Array, out: Array) -> bool:
    ones = np.flatnonzero(np.unpackbits(unary, bitorder="little"))
    if ones.size != widths.size or (ones.size and int(ones[-1]) >> 3 != unary.size - 1):
        return False
    starts = np.cumsum(widths, dtype=np.int64) - widths
    at = starts >> 3
    window = low[at].astype(np.int64)
    for i in range(1, 4):
        window |= low[at + i].astype(np.int64) << (8 * i)
    out[:] = (window >> (starts & 7)) & ((1 << widths.astype(np.int64)) - 1)
    out |= (np.diff(ones, prepend=-1) - 1) << widths
    return True
