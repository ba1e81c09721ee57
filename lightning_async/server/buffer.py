"""Updates that wait for a quorum: one slot per worker, so that a fast worker never has a second vote.

A further update of a worker that already waits joins its own slot, averaged by samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Slot:
    """What one worker has waiting. `vector` is over `present` tensors only in gradient mode, else over all."""

    worker: str
    vector: Tensor
    buffers: Tensor
    present: tuple[int, ...] | None
    base: int
    seq: int
    samples: int
    steps: int
    owned: bool = False  # whether `vector` is ours to write; the first one is a view of the received bytes

    @property
    def numbers(self) -> dict[str, Any]:
        """All but the vectors, in plain values."""
        present = None if self.present is None else list(self.present)
        return {name: getattr(self, name) for name in ("worker", "base", "seq", "samples", "steps")} | {
            "present": present
        }

    @classmethod
    def read(cls, numbers: Mapping[str, Any], vector: Tensor, buffers: Tensor) -> Slot:
        """The slot with these `numbers`."""
        present = None if numbers["present"] is None else tuple(numbers["present"])
        return cls(vector=vector, buffers=buffers, **{**numbers, "present": present})

    def join(self, other: Slot) -> None:
        """Take in a later update of the same worker: samples-weighted mean of the vectors, newest buffers."""
        total = self.samples + other.samples
        mine = self.vector if self.owned else self.vector.clone()
        self.vector = mine.lerp_(other.vector, other.samples / total)
        self.owned = True
        self.buffers, self.seq = other.buffers, other.seq
        self.base, self.samples, self.steps = min(self.base, other.base), total, self.steps + other.steps


class Buffer:
    """The slots of one optimizer group, in the order in which their workers came."""

    def __init__(self) -> None:
        self._slots: dict[str, Slot] = {}
        self.complete_at: float | None = None  # when the quorum was first there

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def add(self, slot: Slot, sizes: list[int]) -> None:
        """Put an update into its worker's slot; `sizes[i]` is the number of elements of tensor i."""
        waiting = self._slots.get(slot.worker)
        if waiting is None:
            self._slots[slot.worker] = slot
            return
        if waiting.present != slot.present:
            present, (waiting.vector, slot.vector) = union([waiting, slot], sizes)
            waiting.present = slot.present = present
        waiting.join(slot)

    def take(self) -> list[Slot]:
        """All slots; the buffer is empty afterwards."""
        slots = list(self._slots.values())
        self._slots.clear()
        self.complete_at = None
        return slots


def union(slots: list[Slot], sizes: list[int]) -> tuple[tuple[int, ...], list[Tensor]]:
    """The tensors present in any slot, and every slot's vector over just those, zeros where it has none.

    `sizes[i]` is the number of elements of tensor i. Without a difference between the slots nothing is copied.
    """
    if len({slot.present for slot in slots}) == 1:
        return slots[0].present or tuple(range(len(sizes))), [slot.vector for slot in slots]
    present = tuple(sorted({i for slot in slots for i in slot.present or range(len(sizes))}))
    return present, [_spread(slot, present, sizes) for slot in slots]


def _spread(slot: Slot, present: tuple[int, ...], sizes: list[int]) -> Tensor:
    own = dict(zip(slot.present or (), _cut(slot.vector, slot.present or (), sizes), strict=True))
    parts = [own.get(i, torch.zeros(sizes[i], dtype=torch.float32)) for i in present]
    return torch.cat(parts)


def _cut(vector: Tensor, present: tuple[int, ...], sizes: list[int]) -> tuple[Tensor, ...]:
    return torch.split(vector, [sizes[i] for i in present])
