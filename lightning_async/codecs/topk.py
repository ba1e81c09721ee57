"""`topk`: the largest magnitudes with their positions; body: u8 how values are written, positions, values.

By itself it loses what it does not send: training needs `error_feedback` around it, as the short name "topk" has.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from lightning_async import spec
from lightning_async.codecs import envelope, indices, selection
from lightning_async.codecs.base import Codec, Payload, State, checked, finite, stateless
from lightning_async.codecs.memory import as_tensor, scattered
from lightning_async.codecs.values import VALUES, Values, by
from lightning_async.errors import ConfigError
from lightning_async.sparse import Sparse

KIND = 3
LONGEST_CHUNK = 1 << 16


def topk(density: float = 0.01, values: str = "int4", chunk: int | None = 4096) -> Codec:
    """Keeps round(density * chunk), at least 1, of each chunk; `chunk=None` keeps them of the whole vector at once.

    A kept number's error is that of `values`: "fp16", "bf16", "int8" (|error| <= scale / 2, scale = max / 127 of 256
    kept neighbours, rounded up by < 1 %), "int4" (max / 7 of 64) or "2bit" (sign and two magnitudes per 64). For
    another way to write them, `chain(topk(...), codec)`. Chunked top-k is as in SparseLoCo (arXiv:2508.15706, sec. 3).
    """
    if values not in VALUES:
        raise ConfigError(f"topk got values={values!r}, expected one of {', '.join(VALUES)}")
    if not 0 < density <= 1:
        raise ConfigError(f"topk got density={density!r}, expected a share of the numbers above 0 and up to 1")
    if chunk is not None and not 16 <= chunk <= LONGEST_CHUNK:
        raise ConfigError(f"topk got chunk={chunk!r}, expected 16 to {LONGEST_CHUNK}, or None for the whole vector")
    name = spec.call("topk", density=float(density), values=values, chunk=chunk)
    plain = spec.call("topk", density=float(density), chunk=chunk)

    def then(inner: Codec) -> Codec:
        return _topk(f"chain({plain}, {inner.spec})", float(density), chunk, by(inner), None)

    return _topk(name, float(density), chunk, VALUES[values], then)


def _topk(name: str, density: float, chunk: int | None, values: Values, then: Callable[[Codec], Codec] | None) -> Codec:
    def most(d: int) -> int:
        return selection.kept(d, density, chunk)

    def max_bytes(d: int) -> int:
        return envelope.HEADER_BYTES + 1 + indices.most_bytes(most(d), d) + values.most_bytes(most(d))

    def pack(places: Tensor, numbers: Tensor, d: int) -> tuple[Payload, Tensor]:
        coded, sent = values.encode(numbers.cpu().numpy())
        parts = [bytes([values.code]), indices.encode(places.cpu().numpy(), d), coded]
        return envelope.joined(parts, KIND, d), as_tensor(sent)

    def encode(vector: Tensor, state: State) -> tuple[Payload, State]:
        vector = checked(vector)
        places = selection.select(vector, density, chunk)
        return pack(places, vector[places], vector.numel())[0], state

    def feedback(vector: Tensor, residual: Tensor, beta: float, state: State) -> tuple[Payload, State]:
        places, numbers = selection.accumulate(vector, residual, beta, density, chunk)
        if not finite(numbers):
            raise ConfigError("residual + vector is beyond float32; start the codec's state anew and look at the loss")
        payload, sent = pack(places, numbers, vector.numel())
        selection.leave(residual, places, numbers, sent)
        return payload, state

    def decode_sparse(payload: Payload, d: int) -> Sparse:
        reader = envelope.opened("topk", payload, KIND, d, max_bytes(d))
        reader.expect("way of writing values", "u1", values.code)
        places = indices.decode(reader, d, most(d))
        numbers = values.decode(reader, places.size)
        reader.end()
        return Sparse(indices=as_tensor(places), values=as_tensor(np.ascontiguousarray(numbers)), size=d)

    return Codec(
        spec=name,
        needs_feedback=True,
        init=stateless,
        encode=encode,
        decode=lambda payload, d: scattered(decode_sparse(payload, d)),
        max_bytes=max_bytes,
        decode_sparse=decode_sparse,
        feedback=feedback,
        then=then,
    )
