"""What an outer optimizer is: pure functions over flat float32 vectors, its state passed in and out.

Rule of this folder: vectors are walked in strips that stay in the cache (`strips`), so that the several operations of a
formula cost one pass over memory and nothing of the model's size is made beside the state. An update is never written:
it may be a view of the received bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_async.errors import PayloadError

State = dict[str, Tensor]
STRIP = 1 << 16  # numbers; four strips of float32 fit into the second-level cache


@dataclass(frozen=True)
class Update:
    """What a step is made of: the pseudo-gradient `scale * vector` [d], which is subtracted.

    `ages`: (staleness in versions, share) of the workers' updates in it; the shares sum to 1.
    """

    vector: Tensor
    scale: float = 1.0
    ages: tuple[tuple[int, float], ...] = ((0, 1.0),)


@dataclass(frozen=True)
class Outer:
    """An outer optimizer. Two with the same `spec` are equal.

    `init(d)` gives the state for d parameters. `move` is the formula: it moves the parameters [d] in place by one step,
    updates the state in place and returns it. `bind(sizes, workers)`: this optimizer for tensors of these sizes, one
    after the other, and this many expected workers; None where neither matters. `weight`: spec of the staleness weight
    that is part of the method, "" for none. `like(d)`: tensors of the state's shapes and types, where `init` does not
    make all of them.
    """

    spec: str
    init: Callable[[int], State] = field(compare=False, repr=False)
    move: Callable[[Tensor, Update, State], State] = field(compare=False, repr=False)
    weight: str = field(default="", compare=False, repr=False)
    bind: Callable[[Sequence[int], int], Outer] | None = field(default=None, compare=False, repr=False)
    like: Callable[[int], State] | None = field(default=None, compare=False, repr=False)

    def step(self, parameters: Tensor, update: Update, state: State) -> State:
        """Move `parameters` [d] in place by one step along `update`; the state, updated in place.

        Raises PayloadError for an update that is not finite; nothing has changed then.
        """
        if not (all_finite(update.vector) and math.isfinite(update.scale)):
            raise PayloadError(f"{self.spec}: NaN or infinity in an update of {update.vector.numel()} numbers")
        return self.move(parameters, update, state)

    def check_state(self, state: Mapping[str, Tensor], d: int) -> None:
        """Raises PayloadError unless `state` is empty, or finite and of this optimizer, whole, for d parameters."""
        known = self.like(d) if self.like is not None else self.init(d)
        for key, value in state.items():
            own = known.get(key)
            if own is None or (own.shape, own.dtype) != (value.shape, value.dtype):
                kind = f"{tuple(value.shape)} {value.dtype}"
                raise PayloadError(f"outer state {key[:80]!r} of {kind} does not fit {self.spec}")
            if not all_finite(value):
                raise PayloadError(f"outer state {key!r} holds NaN or infinity")
        if state and len(state) < len(known):
            missing = ", ".join(sorted(known.keys() - state.keys()))
            raise PayloadError(f"outer state without {missing} does not fit {self.spec}")


def bind(outer: Outer, sizes: Sequence[int], workers: int) -> Outer:
    """`outer` for tensors of these sizes in a run of this many expected workers."""
    return outer if outer.bind is None else outer.bind(tuple(sizes), workers)


def strips(*vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of all the vectors [d] over the same places, STRIP numbers at a time."""
    return zip(*(torch.split(vector, STRIP) for vector in vectors), strict=True)


def zeros(d: int) -> Tensor:
    """A state vector [d] of zeros."""
    return torch.zeros(d, dtype=torch.float32)


def counter() -> Tensor:
    """A state's count of steps, 0."""
    return torch.zeros((), dtype=torch.int64)


def all_finite(vector: Tensor) -> bool:
    """Whether no number of it is NaN or infinite."""
    if not vector.numel():
        return True
    low, high = torch.aminmax(vector)  # one pass, no copy; a NaN anywhere is the result
    return math.isfinite(float(low)) and math.isfinite(float(high))
