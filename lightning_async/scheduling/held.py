"""A range in the ledger's books, with what is known of it, and the units that such ranges are handed out in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_async.scheduling.ranges import Range, size, without


@dataclass(frozen=True)
class Held:
    """A range, since when its worker has it, who had it before, and how much it has been in vain."""

    range: Range
    at: float = 0.0
    before: str = ""
    wear: int = 0

    def part(self, inner: Range) -> Held:
        return replace(self, range=inner)


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


def read_held(rows: Iterable[Any]) -> list[Held]:
    """What `astuple` made of each, through JSON."""
    return [Held((row[0], row[1], row[2]), at, before, wear) for row, at, before, wear in rows]


def cut_out(books: Iterable[Held], cut: Sequence[Range]) -> list[Held]:
    """What is left of `books` without the positions in `cut`."""
    return [held.part(row) for held in books for row in without([held.range], cut)]


def joined(books: Iterable[Held]) -> list[Held]:
    """Neighbours that are alike as one."""
    out: list[Held] = []
    for held in books:
        last = out[-1] if out else None
        alike = last is not None and replace(last, range=held.range) == held
        if last is not None and alike and last.range[0] == held.range[0] and last.range[2] == held.range[1]:
            out[-1] = held.part((held.range[0], last.range[1], held.range[2]))
        else:
            out.append(held)
    return out
