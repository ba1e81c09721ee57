"""`randomk`: one number of every stretch of m, at a place that both sides draw alike, so that no positions travel.

Stretch j of payload number t keeps its coordinate splitmix64(splitmix64(seed + t) + j) modulo the stretch's length, so
every coordinate has its chance. Body: u64 t, u64 bytes, then the kept numbers as another codec's payload.
"""

from __future__ import annotations

import struct

import numpy as np
from torch import Tensor

from lightning_async import spec
from lightning_async.codecs import envelope
from lightning_async.codecs.base import Codec, Payload, State, checked
from lightning_async.codecs.dense import none
from lightning_async.codecs.envelope import Array
from lightning_async.codecs.integers import counting
from lightning_async.codecs.memory import as_tensor, scattered
from lightning_async.codecs.values import by
from lightning_async.errors import ConfigError
from lightning_async.sparse import Sparse

KIND = 5
FEWEST = 1e-9


def randomk(density: float = 0.01, seed: int = 0) -> Codec:
    """Keeps one number in every round(1 / density), as float32; `chain(randomk(...), codec)` writes them otherwise.

    The kept numbers are not scaled up: with error feedback that is right; without, divide by the density yourself.
    """
    if not FEWEST <= density <= 1:
        raise ConfigError(f"randomk got density={density!r}, expected a share of the numbers from {FEWEST} to 1")
    return _randomk(spec.call("randomk", density=float(density), seed=seed), round(1 / density), seed, none(), True)


def _randomk(name: str, stretch: int, seed: int, inner: Codec, open_ended: bool) -> Codec:
    values = by(inner)

    def max_bytes(d: int) -> int:
        return envelope.HEADER_BYTES + 8 + values.most_bytes(-(-d // stretch))

    def encode(vector: Tensor, state: State) -> tuple[Payload, State]:
        vector = checked(vector)
        step = int(state["step"])
        places = as_tensor(_places(vector.numel(), stretch, seed, step)).to(vector.device)
        coded, _ = values.encode(vector[places].cpu().numpy())
        return envelope.joined([struct.pack("<Q", step), coded], KIND, vector.numel()), {"step": state["step"] + 1}

    def decode_sparse(payload: Payload, d: int) -> Sparse:
        reader = envelope.opened("randomk", payload, KIND, d, max_bytes(d))
        places = _places(d, stretch, seed, reader.number("<u8"))
        numbers = values.decode(reader, places.size)
        reader.end()
        return Sparse(indices=as_tensor(places), values=as_tensor(np.ascontiguousarray(numbers)), size=d)

    def then(codec: Codec) -> Codec:
        return _randomk(f"chain({name}, {codec.spec})", stretch, seed, codec, False)

    return Codec(
        spec=name,
        needs_feedback=True,
        init=counting,
        encode=encode,
        decode=lambda payload, d: scattered(decode_sparse(payload, d)),
        max_bytes=max_bytes,
        decode_sparse=decode_sparse,
        then=then if open_ended else None,
    )


def _places(d: int, stretch: int, seed: int, step: int) -> Array:
    starts = np.arange(0, d, stretch, dtype=np.int64)
    first = envelope.splitmix(np.array([(seed + step) & (2**64 - 1)], dtype=np.uint64))
    lengths = np.minimum(stretch, d - starts).astype(np.uint64)
    drawn = envelope.splitmix(np.arange(starts.size, dtype=np.uint64) + first) % lengths
    places: Array = starts + drawn.astype(np.int64)
    return places
