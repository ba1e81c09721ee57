"""The loops over kept numbers compiled by numba: gaps, levels, Rice numbers. Same bytes as the numpy twins.

Only kernels.py's readers import this.
"""

from __future__ import annotations

import numpy as np

from lightning_async.codecs.compiled import jit
from lightning_async.codecs.envelope import Array


@jit
def gaps(indices: Array, page_bits: int, counts: Array, out: Array) -> None:
    """indices.encode: adds to each page's count, and writes the gap before each index."""
    page, before = np.int64(-1), np.int64(-1)
    for i in range(indices.size):
        index = np.int64(indices[i])
        if index >> page_bits != page:
            page = index >> page_bits
            before = (page << page_bits) - 1
        counts[page] += 1
        out[i] = index - before - 1
        before = index


@jit
def high(values: Array, width: int) -> int:
    """The sum of values >> width."""
    total: int = 0
    for i in range(values.size):
        total += np.int64(values[i]) >> width
    return total


@jit
def high_by(values: Array, widths: Array) -> int:
    """The same with a width for each."""
    total: int = 0
    for i in range(values.size):
        total += np.int64(values[i]) >> np.int64(widths[i])
    return total


@jit
def distances(q: Array, block: int, least: Array, out: Array) -> None:
    """values.integers: each block's smallest magnitude, and how far each magnitude lies above it."""
    for b in range(least.size):
        part = q[b * block : min((b + 1) * block, q.size)]
        bottom = np.int64(127)
        for i in range(part.size):
            bottom = min(bottom, abs(np.int64(part[i])))
        least[b] = bottom
        to = out[b * block : b * block + part.size]
        for i in range(part.size):
            to[i] = abs(np.int64(part[i])) - bottom


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
