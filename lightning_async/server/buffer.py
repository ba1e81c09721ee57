"""Updates that wait for a quorum: one slot per worker, so that a fast worker never has a second vote.

A further update of a worker that already waits joins its own slot, averaged by samples. Updates of a codec that leaves
numbers out stay sparse while they wait, so n of them never take n vectors of the model's length.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_async.aggregation import Row
from lightning_async.scheduling import Range
from lightning_async.sparse import Sparse


@dataclass
class Slot:
    """What one worker has waiting. `vector` is over `present` tensors only in gradient mode, else over all."""

    worker: str
    vector: Row
    buffers: Tensor
    present: tuple[int, ...] | None
    base: int
    seq: int
    samples: int
    steps: int
    units: tuple[tuple[str, Range], ...] = ()  # (stream, range): leased samples that are in it
    owned: bool = False  # whether `vector` is ours to write; the first one is a view of the received bytes

    @property
    def numbers(self) -> dict[str, Any]:
        """All but the vectors, in plain values."""
        present = None if self.present is None else list(self.present)
        return {name: getattr(self, name) for name in ("worker", "base", "seq", "samples", "steps")} | {
            "present": present,
            "units": [[stream, *row] for stream, row in self.units],
        }

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The vectors, as tensors that nobody writes to afterwards."""
        row = self.vector
        own = {"indices": row.indices, "values": row.values} if isinstance(row, Sparse) else {"vector": row}
        return {name: tensor.clone() for name, tensor in own.items()} | {"buffers": self.buffers}

    @classmethod
    def read(cls, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> Slot:
        """The slot that had these `numbers` and `tensors`; `sizes[i]` is the number of elements of tensor i."""
        present = None if numbers["present"] is None else tuple(numbers["present"])
        size = sum(sizes if present is None else (sizes[i] for i in present))
        kept = "vector" in tensors
        vector = tensors["vector"] if kept else Sparse(tensors["indices"], tensors["values"], size)
        units = tuple((stream, (a, b, c)) for stream, a, b, c in numbers.get("units", ()))
        return cls(vector=vector, buffers=tensors["buffers"], **{**numbers, "present": present, "units": units})

    def join(self, other: Slot) -> None:
        """Take in a later update of the same worker: samples-weighted mean of the vectors, newest buffers."""
        total = self.samples + other.samples
        self.vector = self._mean(other.vector, other.samples / total)
        self.owned = True
        self.buffers, self.seq = other.buffers, other.seq
        self.base, self.samples, self.steps = min(self.base, other.base), total, self.steps + other.steps
        self.units += other.units

    def _mean(self, vector: Row, share: float) -> Row:
        """(1 - share) x ours + share x `vector`; into our own memory where it is ours to write."""
        mine = self.vector
        if isinstance(mine, Sparse):
            if isinstance(vector, Sparse):
                return mine.mixed(vector, share).lean()
            return mine.add_to(vector.mul(share), 1.0 - share)
        mine = mine if self.owned else mine.clone()
        if isinstance(vector, Sparse):
            return vector.add_to(mine.mul_(1.0 - share), share)
        return mine.lerp_(vector, share)


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

    def remove(self, slots: Sequence[Slot]) -> None:
        """Something has become of these slots, and they wait no more."""
        for slot in slots:
            del self._slots[slot.worker]
        self.complete_at = None


def mixed(before: Tensor, slots: Sequence[Slot], robust: bool, live: int) -> Tensor:
    """Buffers [b] that have moved from `before` towards the mean (`robust`: median) of those that came with the slots,
    by the share of the `live` workers that sent some."""
    sent = [slot.buffers for slot in slots if slot.buffers.numel()]
    if not sent:
        return before
    stack = torch.stack(sent)
    middle = stack.median(dim=0).values if robust else stack.mean(dim=0)
    share = min(1.0, len(sent) / max(1, live))
    moved = middle if share == 1.0 else torch.lerp(before, middle, share)
    return torch.where(middle == before, before, moved)  # the same infinity stays what it is


def union(slots: list[Slot], sizes: list[int]) -> tuple[tuple[int, ...], list[Row]]:
    """The tensors present in any slot, and every slot's vector over just those, zeros where it has none.

    `sizes[i]` is the number of elements of tensor i. Without a difference between the slots nothing is copied.
    """
    if len({slot.present for slot in slots}) == 1:
        return slots[0].present or tuple(range(len(sizes))), [slot.vector for slot in slots]
    present = tuple(sorted({i for slot in slots for i in slot.present or range(len(sizes))}))
    return present, [spread(slot, present, sizes) for slot in slots]


def spread(slot: Slot, present: tuple[int, ...], sizes: list[int]) -> Row:
    """The slot's vector over the tensors `present`, of which it has some."""
    own = range(len(sizes)) if slot.present is None else slot.present
    begins = dict(zip(present, _begins(present, sizes), strict=True))
    if isinstance(slot.vector, Sparse):
        moved = torch.tensor([begins[i] - at for i, at in zip(own, _begins(own, sizes), strict=True)])
        place = slot.vector.indices.to(torch.int64)
        tensor = torch.searchsorted(torch.tensor(_begins(own, sizes)), place, right=True) - 1
        return Sparse(place + moved[tensor], slot.vector.values, sum(sizes[i] for i in present))
    parts = dict(zip(own, torch.split(slot.vector, [sizes[i] for i in own]), strict=True))
    return torch.cat([parts.get(i, torch.zeros(sizes[i], dtype=torch.float32)) for i in present])


def _begins(tensors: Sequence[int], sizes: list[int]) -> list[int]:
    """Where each of the tensors begins when they stand one after the other."""
    ends = list(itertools.accumulate((sizes[i] for i in tensors), initial=0))
    return ends[:-1]
