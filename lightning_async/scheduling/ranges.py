"""Ranges of positions: (pass, start, stop), half open. What the ledger and a worker's sampler both count in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

Range: TypeAlias = tuple[int, int, int]


def size(ranges: Iterable[Range]) -> int:
    """Positions in them."""
    return sum(stop - start for _, start, stop in ranges)


def overlap(a: Range, b: Range) -> Range | None:
    """The positions in both."""
    start, stop = max(a[1], b[1]), min(a[2], b[2])
    return (a[0], start, stop) if a[0] == b[0] and start < stop else None


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same positions in order, neighbours as one range. Of positions that are there twice, one stays."""
    out: list[Range] = []
    for number, start, stop in sorted(ranges):
        if out and out[-1][0] == number and out[-1][2] >= start:
            out[-1] = (number, out[-1][1], max(stop, out[-1][2]))
        else:
            out.append((number, start, stop))
    return out


def without(ranges: Iterable[Range], cut: Iterable[Range]) -> list[Range]:
    """The positions of `ranges` that are not in `cut`, in order."""
    left, cuts = merged(ranges), list(cut)
    for gone in cuts:
        left = [part for kept in left for part in _cut(kept, gone)]
    return left


def _cut(kept: Range, gone: Range) -> Iterator[Range]:
    both = overlap(kept, gone)
    if both is None:
        yield kept
        return
    if kept[1] < both[1]:
        yield (kept[0], kept[1], both[1])
    if both[2] < kept[2]:
        yield (kept[0], both[2], kept[2])


def read(row: Any, length: int) -> Range:
    """The range in a message's list. Raises ValueError for anything else, or one beyond `length` positions a pass."""
    match row:
        case [int(number), int(start), int(stop)] if 0 <= start < stop <= length and 0 <= number < 2**40:
            return number, start, stop
    raise ValueError(f"got {str(row)[:60]}, expected [pass, start, stop] with 0 <= start < stop <= {length}")
