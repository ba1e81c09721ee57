"""A range in the ledger's books, with what is known of it, and the units that such ranges are handed out in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from lightning_async.scheduling.ranges import Range, inside, merged, outside, size


@dataclass(frozen=True)
class Held:
    """A range, since when its worker has it, who had it before, and how much it has been in vain."""

    range: Range
    at: float = 0.0
    before: str = ""
    wear: int = 0

    def part(self, inner: Range) -> Held:
        return self if inner == self.range else replace(self, range=inner)

    def alike(self, other: Held) -> bool:
        """Whether the same is known of both."""
        return (self.at, self.before, self.wear) == (other.at, other.before, other.wear)


@dataclass(frozen=True)
class Unit:
    """Work for one lease: what one worker may get."""

    pieces: tuple[Held, ...]

    @property
    def ranges(self) -> list[Range]:
        return [piece.range for piece in self.pieces]

    @property
    def size(self) -> int:
        """Samples."""
        return size(self.ranges)

    @property
    def oldest(self) -> int:
        """The lowest pass that it belongs to."""
        return min(piece.range[0] for piece in self.pieces)

    def samples_of(self, worker: str) -> int:
        """How many of its samples `worker` has had before."""
        return size(piece.range for piece in self.pieces if piece.before == worker)

    def first(self, count: int) -> Unit:
        """Its first `count` samples, at most all."""
        kept: list[Held] = []
        for piece in self.pieces:
            number, start, stop = piece.range
            if count > 0:
                kept.append(piece.part((number, start, min(stop, start + count))))
            count -= stop - start
        return Unit(tuple(kept))


def read_held(rows: Iterable[Any]) -> list[Held]:
    """What `astuple` made of each, through JSON."""
    return [Held((row[0], row[1], row[2]), at, before, wear) for row, at, before, wear in rows]


def cut_out(books: Iterable[Held], cut: Iterable[Range]) -> list[Held]:
    """What is left of `books` without the positions in `cut`."""
    cuts = merged(cut)
    return [held.part(row) for held in books for row in outside(held.range, cuts)]


def common(books: Iterable[Held], cut: Iterable[Range]) -> list[Held]:
    """What of `books` is in `cut`."""
    cuts = merged(cut)
    return [held.part(row) for held in books for row in inside(held.range, cuts)]


def joined(books: Iterable[Held]) -> list[Held]:
    """Neighbours that are alike as one."""
    out: list[Held] = []
    for held in books:
        number, start, stop = held.range
        last = out[-1] if out else None
        if last is not None and last.range[0] == number and last.range[2] == start and last.alike(held):
            out[-1] = held.part((number, last.range[1], stop))
        else:
            out.append(held)
    return out
