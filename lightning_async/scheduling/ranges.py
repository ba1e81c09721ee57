"""Ranges of positions: (pass, start, stop), half open. What the ledger and a worker's sampler both count in.

Rule of this file: n ranges and m others take n log n + m log m. Peers choose how many there are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
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


def inside(row: Range, cuts: Sequence[Range]) -> Iterator[Range]:
    """The parts of `row` that are in `cuts`, in order; `cuts` are `merged`."""
    number, start, stop = row
    at = max(0, bisect_left(cuts, (number, start + 1, 0)) - 1)
    while at < len(cuts) and cuts[at][:2] < (number, stop):
        if both := overlap(row, cuts[at]):
            yield both
        at += 1


def outside(row: Range, cuts: Sequence[Range]) -> Iterator[Range]:
    """The parts of `row` that are not in `cuts`, in order; `cuts` are `merged`."""
    number, start, stop = row
    for _, begin, end in inside(row, cuts):
        if start < begin:
            yield number, start, begin
        start = end
    if start < stop:
        yield number, start, stop


def by_stream(units: Iterable[tuple[str, Range]]) -> dict[str, list[Range]]:
    """The ranges of (stream, range) of each stream, merged."""
    found: dict[str, list[Range]] = {}
    for stream, row in units:
        found.setdefault(stream, []).append(row)
    return {stream: merged(own) for stream, own in found.items()}


def without(ranges: Iterable[Range], cut: Iterable[Range]) -> list[Range]:
    """The positions of `ranges` that are not in `cut`, in order."""
    cuts = merged(cut)
    return [part for row in merged(ranges) for part in outside(row, cuts)]


def read(row: Any, length: int) -> Range:
    """The range in a message's list. Raises ValueError for anything else, or one beyond `length` positions a pass."""
    match row:
        case [int(number), int(start), int(stop)] if 0 <= start < stop <= length and 0 <= number < 2**40:
            return number, start, stop
    raise ValueError(f"got {str(row)[:60]}, expected [pass, start, stop] with 0 <= start < stop <= {length}")
