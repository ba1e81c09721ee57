"""`by_size`: large tensors with one codec, small ones (biases, norms) with another, each run of neighbours on its own.

Bound to shapes (`bind`), neighbouring tensors of one kind form a run, a view of the vector that is never copied;
unbound, the vector is one tensor. Body: for each run in order u64 bytes, then its payload. The
names in a run's state begin with its number.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import numpy as np
from torch import Tensor

from lightning_async import spec
from lightning_async.codecs import envelope
from lightning_async.codecs.base import Codec, Payload, Shape, State, checked, with_feedback
from lightning_async.codecs.base import bind as bind_to
from lightning_async.codecs.dense import fp16
from lightning_async.codecs.memory import as_tensor
from lightning_async.codecs.topk import topk
from lightning_async.errors import ConfigError

KIND = 7


@dataclass(frozen=True, kw_only=True)
class _Run:
    start: int
    size: int
    codec: Codec


Step: TypeAlias = Callable[[_Run, State], tuple[Payload, State]]


def by_size(large: Codec | None = None, small: Codec | None = None, below: int = 4096) -> Codec:
    """Tensors of fewer than `below` numbers with `small` (default `fp16()`), others with `large` (default `topk()`).

    Put error feedback around it: `error_feedback(by_size(topk(), fp16()))`.
    """
    large, small = large or topk(), small or fp16()
    if below < 1:
        raise ConfigError(f"by_size got below={below!r}, expected a number of elements of at least 1")
    if large.fold_back or small.fold_back:
        raise ConfigError("by_size takes codecs without feedback; put error_feedback around by_size")
    return _by_size(large, small, below, None)


def _by_size(large: Codec, small: Codec, below: int, shapes: tuple[Shape, ...] | None) -> Codec:
    def runs(d: int) -> list[_Run]:
        return _runs(large, small, below, shapes, d)

    def init(d: int) -> State:
        return {f"{i}.{key}": t for i, run in enumerate(runs(d)) for key, t in run.codec.init(run.size).items()}

    def walk(vector: Tensor, state: State, step: Step) -> tuple[Payload, State]:
        parts: list[bytes] = []
        after: State = {}
        for i, run in enumerate(runs(vector.numel())):
            own = {key.removeprefix(f"{i}."): t for key, t in state.items() if key.startswith(f"{i}.")}
            payload, own = step(run, own)
            parts += [struct.pack("<Q", memoryview(payload).nbytes), bytes(payload)]
            after |= {f"{i}.{key}": t for key, t in own.items()}
        return envelope.joined(parts, KIND, vector.numel()), after

    def encode(vector: Tensor, state: State) -> tuple[Payload, State]:
        vector = checked(vector)
        return walk(vector, state, lambda run, own: run.codec.encode(_of(vector, run), own))

    def feedback(vector: Tensor, residual: Tensor, beta: float, state: State) -> tuple[Payload, State]:
        def step(run: _Run, own: State) -> tuple[Payload, State]:
            return with_feedback(run.codec, _of(vector, run), _of(residual, run), beta, own)

        return walk(vector, state, step)

    def max_bytes(d: int) -> int:
        return envelope.HEADER_BYTES + sum(8 + run.codec.max_bytes(run.size) for run in runs(d))

    def decode(payload: Payload, d: int) -> Tensor:
        reader = envelope.opened("by_size", payload, KIND, d, max_bytes(d))
        out = as_tensor(np.zeros(d, dtype=np.float32))
        for run in runs(d):
            inner = reader.take(reader.number("<u8"))
            _of(out, run).copy_(run.codec.decode(inner.data, run.size))
        reader.end()
        return out

    def bind(shapes: Sequence[Shape]) -> Codec:
        return _by_size(large, small, below, tuple(shapes))

    return Codec(
        spec=spec.call("by_size", large, small, below=below),
        needs_feedback=large.needs_feedback or small.needs_feedback,
        shapes=shapes,
        init=init,
        encode=encode,
        decode=decode,
        max_bytes=max_bytes,
        feedback=feedback,
        bind=bind,
    )


def _of(vector: Tensor, run: _Run) -> Tensor:
    return vector[run.start : run.start + run.size]


def _runs(large: Codec, small: Codec, below: int, shapes: tuple[Shape, ...] | None, d: int) -> list[_Run]:
    """Neighbours of one kind together; ConfigError where the shapes do not fill the vector."""
    runs, start = [], 0
    every = [(d,)] if shapes is None else shapes
    for is_small, group in groupby(every, key=lambda shape: math.prod(shape) < below):
        members = tuple(group)
        size = sum(math.prod(shape) for shape in members)
        codec = small if is_small else large
        runs.append(_Run(start=start, size=size, codec=codec if shapes is None else bind_to(codec, members)))
        start += size
    if start != d:
        raise ConfigError(f"by_size is bound to shapes of {start} numbers and got {d}; bind it to this run's layout")
    return runs
