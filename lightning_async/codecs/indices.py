"""A set of coordinates as bytes, close to the entropy of such sets: pages, their counts, and gaps.

The vector is cut into pages of 2^page_bits coordinates. Inside a page of length L that keeps c coordinates, the gap
before each (the coordinates skipped since the one before it, or since the page's start) is a Rice number whose width is
the largest w with (c + 1) << w <= (123 (L + 1)) >> 7: the best width for gaps of that mean. So each page adapts to its
own density, and an empty one costs a bit or two. As bytes:

    u64 n · (n > 0 only) u8 page_bits · u8 width of the counts' code · counts (rice) · gaps (rice)

A count is written as its difference from the page before (from 0 for the first), zigzag: 0, -1, 1, -2 ... are 0, 1, 2,
3 ... Positions are 64-bit throughout.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from lightning_async.codecs import kernels, rice
from lightning_async.codecs.envelope import Array, Reader
from lightning_async.errors import PayloadError

LEAST_PAGE_BITS, MOST_PAGE_BITS = 12, 24
A_PAGE_SHOULD_KEEP = 32


def encode(indices: Array, d: int) -> bytes:
    """`indices`: int64 [n], strictly increasing, in [0, d)."""
    n = indices.size
    if n == 0:
        return struct.pack("<Q", 0)
    page_bits = _page_bits(n, d)
    counts, gaps = _gaps(indices, page_bits, _pages(d, page_bits))
    deltas = np.diff(counts, prepend=0)
    zigzag = (deltas << 1) ^ (deltas >> 63)
    width = rice.best_width(zigzag)
    widths = np.repeat(_widths(counts, _lengths(d, page_bits)), counts)
    head = struct.pack("<QBB", n, page_bits, width)
    return head + rice.encode(zigzag, np.full(zigzag.size, width, np.uint8)) + rice.encode(gaps, widths)


def decode(reader: Reader, d: int, most: int) -> Array:
    """The int64 indices, strictly increasing in [0, d), at most `most` of them; PayloadError otherwise."""
    n = reader.number("<u8")
    if n > most:
        raise PayloadError(f"a {reader.name} payload keeps {n} numbers, this run's codec at most {most}; compare specs")
    if n == 0:
        return np.empty(0, dtype=np.int64)
    page_bits, width = reader.number("u1"), reader.number("u1")
    if not LEAST_PAGE_BITS <= page_bits <= MOST_PAGE_BITS or width > rice.WIDEST:
        raise PayloadError(f"a {reader.name} payload has page_bits {page_bits} and width {width}; refuse it")
    lengths = _lengths(d, page_bits)
    zigzag = rice.decode(reader, np.full(lengths.size, width, np.uint8), (4 * n + lengths.size) >> width)
    counts = np.cumsum((zigzag >> 1) ^ -(zigzag & 1))
    if (counts < 0).any() or (counts > lengths).any() or int(counts.sum()) != n:
        raise PayloadError(f"a {reader.name} payload's pages do not hold the {n} numbers that it declares; refuse it")
    per_page = _widths(counts, lengths)
    highs = int((lengths >> per_page)[counts > 0].sum())
    gaps = rice.decode(reader, np.repeat(per_page, counts), highs)
    return _positions(reader, gaps, counts, lengths, page_bits)


def most_bytes(n: int, d: int) -> int:
    """No set of at most n of d takes more: widths are concave in the count, so equal pages are the worst."""
    pages = _pages(d, LEAST_PAGE_BITS)
    spread = math.log2(max(2.0, (d + (1 << MOST_PAGE_BITS)) / max(1, n)))
    return 32 + math.ceil((n * (spread + 9) + 8 * pages) / 8)


def _gaps(indices: Array, page_bits: int, pages: int) -> tuple[Array, Array]:
    """int64 [pages] counts, and the int64 [n] gaps before each index."""
    fast = kernels.compiled_codes()
    if fast is not None:
        counts, gaps = np.zeros(pages, dtype=np.int64), np.empty(indices.size, dtype=np.int64)
        fast.gaps(indices, page_bits, counts, gaps)
        return counts, gaps
    page = indices >> page_bits
    gaps = np.diff(indices, prepend=-1) - 1
    firsts = np.flatnonzero(np.diff(page, prepend=-1))
    gaps[firsts] = indices[firsts] & ((1 << page_bits) - 1)
    return np.bincount(page, minlength=pages), gaps


def _positions(reader: Reader, gaps: Array, counts: Array, lengths: Array, page_bits: int) -> Array:
    steps = np.cumsum(gaps + 1)
    ends = np.cumsum(counts)
    before = np.concatenate([np.zeros(1, dtype=np.int64), steps])
    within = before[ends] - before[ends - counts]
    if (within > lengths).any():
        raise PayloadError(f"a {reader.name} payload keeps a number beyond the end of its page; refuse it")
    offsets = (np.arange(counts.size, dtype=np.int64) << page_bits) - before[ends - counts] - 1
    positions: Array = steps + np.repeat(offsets, counts)
    return positions


def _page_bits(n: int, d: int) -> int:
    """The smallest page that keeps 32 on average: counts then cost little, and pages adapt well."""
    wanted = math.ceil(math.log2(max(1.0, A_PAGE_SHOULD_KEEP * d / n)))
    return max(LEAST_PAGE_BITS, min(MOST_PAGE_BITS, wanted))


def _pages(d: int, page_bits: int) -> int:
    return -(-d // (1 << page_bits))


def _lengths(d: int, page_bits: int) -> Array:
    lengths = np.full(_pages(d, page_bits), 1 << page_bits, dtype=np.int64)
    lengths[-1:] = d - ((lengths.size - 1) << page_bits)
    return lengths


def _widths(counts: Array, lengths: Array) -> Array:
    limit = (123 * (lengths + 1)) >> 7
    widths = np.zeros(counts.size, dtype=np.uint8)
    for w in range(1, MOST_PAGE_BITS + 1):
        widths += ((counts + 1) << w) <= limit
    return widths
