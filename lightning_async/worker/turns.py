"""Whose turn it is in a run with fragments: which piece of the model the next update holds, and what it began from."""

from __future__ import annotations

from collections.abc import Collection


class Turns:
    """The turns of `count` pieces."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._last = -1
        self._bases: dict[int, int] = {}
        self._sent = set(range(count))  # since the last parameters came
        self._samples = [0] * count  # since each one's last turn

    def next(self, owed: Collection[int]) -> int:
        """The piece after the last one, or the first after that of which there is progress: one of `owed`."""
        order = ((self._last + 1 + i) % self._count for i in range(self._count))
        self._last = next(piece for piece in order if piece in owed)
        return self._last

    def base(self, piece: int, round_base: int) -> int:
        """The version that this piece's progress began from: the first that came after its last turn, or the round's
        when it has had none."""
        self._sent.add(piece)
        return min(round_base, self._bases.pop(piece, round_base))

    def note(self, samples: int) -> None:
        """A round of so many samples is over, and there is progress of it in every piece."""
        self._samples = [before + samples for before in self._samples]

    def samples(self, piece: int) -> int:
        """How many samples this turn stands for: those since the last one, divided among the pieces."""
        found, self._samples[piece] = self._samples[piece], 0
        return max(1, -(-found // self._count))

    def came(self, version: int) -> None:
        """Parameters have come: what began since the last ones begins from these."""
        self._bases.update((piece, version) for piece in self._sent)
        self._sent.clear()

    def align(self) -> None:
        """All progress is sent, and the model is what is published."""
        self._bases.clear()
        self._sent = set(range(self._count))
        self._samples = [0] * self._count
