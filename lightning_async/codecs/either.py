"""`either`: a sparse codec, or a dense one for the vectors of which a sparse payload carries too little.

A sparse payload that carries the share c of a vector's energy (its squared length) leaves the rest for later ones. If
each carries that share of what it finds, n = log(0.1) / log(1 - c) of them go until a tenth is left. Where these n are
longer in all than the dense payload, the dense one is sent at once. Differences with heavy tails, and normal ones, are
sparse (5 % of the numbers carry 28 % of a normal vector's energy, n = 7); those of about one magnitude, as means of
signs, or what has piled up evenly, are dense.
Body: u64 which (0 sparse, 1 dense), then that codec's payload.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_async import spec
from lightning_async.codecs import envelope
from lightning_async.codecs.base import Codec, Payload, Shape, State, checked, stateless
from lightning_async.codecs.base import bind as bind_to
from lightning_async.codecs.integers import int8
from lightning_async.codecs.topk import topk
from lightning_async.errors import ConfigError, PayloadError

KIND = 9
LEFT = 0.1


def either(sparse: Codec | None = None, dense: Codec | None = None) -> Codec:
    """`sparse` (default top-k 5 % with int8 values) or `dense` (default `int8()`), by what the vector asks for.

    ConfigError for codecs with a state: the one that is not used would fall behind.
    """
    sparse, dense = sparse or topk(density=0.05, values="int8"), dense or int8()
    for inner in (sparse, dense):
        if inner.fold_back is not None or inner.init(1):
            raise ConfigError(f"either got {inner.spec}, which has a state; give it codecs without")
    return _either(sparse, dense, None)


def _either(sparse: Codec, dense: Codec, shapes: tuple[Shape, ...] | None) -> Codec:
    both = (sparse, dense)

    def encode(vector: Tensor, state: State) -> tuple[Payload, State]:
        vector = checked(vector)
        payload, _ = sparse.encode(vector, {})
        size = memoryview(payload).nbytes
        if size * _needed(_carried(sparse, payload, vector)) <= dense.max_bytes(vector.numel()):
            return envelope.around(payload, 0, KIND, vector.numel()), state
        return envelope.around(dense.encode(vector, {})[0], 1, KIND, vector.numel()), state

    def max_bytes(d: int) -> int:
        return envelope.INNER + max(codec.max_bytes(d) for codec in both)

    def decode(payload: Payload, d: int) -> Tensor:
        which, inner = envelope.opened("either", payload, KIND, d, max_bytes(d)).inner()
        if which > 1:
            raise PayloadError(f"an either payload is of its codec {which}, known are 0 and 1; refuse it")
        return both[which].decode(inner, d)

    def bind(shapes: Sequence[Shape]) -> Codec:
        return _either(bind_to(sparse, shapes), bind_to(dense, shapes), tuple(shapes))

    return Codec(
        spec=spec.call("either", sparse, dense),
        needs_feedback=sparse.needs_feedback,
        shapes=shapes,
        init=stateless,
        encode=encode,
        decode=decode,
        max_bytes=max_bytes,
        bind=bind if sparse.bind or dense.bind else None,
    )


def _needed(share: float) -> float:
    """Payloads until LEFT of the energy is left, each of which carries `share` of what it finds; at least 1."""
    if share <= 0.0:
        return math.inf
    return 1.0 if share >= 1.0 - LEFT else math.log(LEFT) / math.log1p(-share)


def _carried(codec: Codec, payload: Payload, vector: Tensor) -> float:
    """The share of the vector's energy that is gone once the payload's vector is taken from it; 1 of zeros."""
    energy = _energy(vector)
    if codec.decode_sparse is None:
        gone = energy - _energy(vector - codec.decode(payload, vector.numel()).to(vector.device))
    else:
        sent = codec.decode_sparse(payload, vector.numel())
        kept = vector[sent.indices.to(vector.device)]
        gone = _energy(kept) - _energy(kept - sent.values.to(vector.device))
    return max(0.0, gone) / energy if energy > 0 else 1.0


def _energy(vector: Tensor) -> float:
    """The squared length. Summed as float64: squares of float32 can be beyond it."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64)) ** 2
