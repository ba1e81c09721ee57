"""`error_feedback`: what a codec did not send is kept and added to the next vector, so that nothing is lost for good.

    residual <- beta * residual + vector;  payload <- encode(residual);  residual <- residual - decode(payload)

With beta = 1, all decoded payloads and the residual add up to all vectors (Seide et al. 2014; Karimireddy et al. 2019,
arXiv:1901.09847). With beta < 1 old leftovers fade: SparseLoCo's accumulator (arXiv:2508.15706). A payload that the
server refused goes back into the residual through `fold_back`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_async import spec
from lightning_async.codecs.base import Codec, Payload, Shape, State, checked, with_feedback
from lightning_async.codecs.memory import zeros
from lightning_async.codecs.topk import topk
from lightning_async.errors import ConfigError

RESIDUAL = "residual"


def error_feedback(inner: Codec | None = None, beta: float = 1.0) -> Codec:
    """`inner` (default: `topk()`) with a residual, which is updated in place. ConfigError unless 0 <= beta <= 1."""
    inner = topk() if inner is None else inner
    if not 0 <= beta <= 1:
        raise ConfigError(f"error_feedback got beta={beta!r}, expected 0 (forget) to 1 (keep everything)")
    if inner.fold_back is not None:
        raise ConfigError(f"error_feedback got {inner.spec}, which has feedback already; give it the codec inside")
    return _error_feedback(inner, float(beta))


def _error_feedback(inner: Codec, beta: float) -> Codec:
    def init(d: int) -> State:
        return {RESIDUAL: zeros(d), **inner.init(d)}

    def encode(vector: Tensor, state: State) -> tuple[Payload, State]:
        vector = checked(vector)
        rest = dict(state)
        residual = beside(rest.pop(RESIDUAL), vector)
        payload, rest = with_feedback(inner, vector, residual, beta, rest)
        return payload, {RESIDUAL: residual, **rest}

    def fold_back(payload: Payload, state: State) -> State:
        residual = state[RESIDUAL]
        if inner.decode_sparse is None:
            residual.add_(inner.decode(payload, residual.numel()).to(residual.device))
        else:
            sparse = inner.decode_sparse(payload, residual.numel())
            residual.index_add_(0, sparse.indices.to(residual.device), sparse.values.to(residual.device))
        return state

    def bind(shapes: Sequence[Shape]) -> Codec:
        return _error_feedback(inner.bind(shapes) if inner.bind else inner, beta)

    return Codec(
        spec=spec.call("error_feedback", inner, beta=beta),
        shapes=inner.shapes,
        init=init,
        encode=encode,
        decode=inner.decode,
        max_bytes=inner.max_bytes,
        decode_sparse=inner.decode_sparse,
        fold_back=fold_back,
        bind=None if inner.bind is None else bind,
    )


def beside(residual: Tensor, vector: Tensor) -> Tensor:
    """The residual on the vector's device: a new state starts on the CPU. ConfigError where lengths differ."""
    if residual.numel() != vector.numel():
        raise ConfigError(
            f"a codec's state for {residual.numel()} numbers got {vector.numel()}; init it for this layout"
        )
    return residual.to(vector.device)
