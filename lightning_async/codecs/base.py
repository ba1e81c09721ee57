"""What a codec is: a frozen record of functions, vector <-> bytes, with the state passed in and out.

    payload, state = codec.encode(vector, state)          # worker
    vector = codec.decode(payload, d)                     # server

The rules of the family, held by tests/contracts/test_codecs.py over the whole table:
- `spec` is the codec: two codecs with equal specs are equal, and both sides of a link compare it in the handshake.
- A state is a flat dict of plain tensors, so a snapshot stores it. The residual in it is updated in place: after
  `encode`, only the state that it returned may be used.
- `encode` refuses what is not a finite float32 vector with a ConfigError; the state is then as it was.
- `decode` of any bytes is a float32 vector of length d or a PayloadError, in memory bounded by d and the codec.
- Nothing here reads the global default dtype or the grad mode: the main thread changes both while we work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_async.codecs import kernels
from lightning_async.errors import ConfigError
from lightning_async.sparse import Sparse

State: TypeAlias = dict[str, Tensor]
Payload: TypeAlias = bytes | bytearray | memoryview
Shape: TypeAlias = tuple[int, ...]

INFINITY = 0x7F800000  # as bits; of a NaN they are greater


@dataclass(frozen=True, kw_only=True, slots=True)
class Ladder:
    """The rungs of a codec that can send more or less: rung 0 sends the most, the last one the least."""

    specs: tuple[str, ...]
    bits: tuple[float, ...]
    """About what each rung takes per number, before anything was measured."""
    of: Callable[[Payload], int]
    """of(payload): the rung of a payload that `decode` takes."""
    at: Callable[[State], int]
    """at(state): the rung of the next payload."""
    to: Callable[[State, int], State]
    """to(state, rung): the state from which the next payload is of that rung."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """One member of the family. `spec` and `shapes` alone take part in `==`; a capability is a function or None."""

    spec: str
    lossless: bool = False
    needs_feedback: bool = field(default=False, compare=False, repr=False)
    """What it leaves out in one payload would be lost: training needs `error_feedback` around it."""
    shapes: tuple[Shape, ...] | None = field(default=None, repr=False)
    init: Callable[[int], State] = field(compare=False, repr=False)
    """init(d): the state before the first vector of length d."""
    encode: Callable[[Tensor, State], tuple[Payload, State]] = field(compare=False, repr=False)
    """encode(vector, state): float32 [d] -> (payload, next state). ConfigError on NaN, infinity or another dtype."""
    decode: Callable[[Payload, int], Tensor] = field(compare=False, repr=False)
    """decode(payload, d): float32 [d] on the CPU, to be read only (it may view the payload), or PayloadError."""
    max_bytes: Callable[[int], int] = field(compare=False, repr=False)
    """max_bytes(d): no payload of a vector of length d is longer; a receiver may refuse longer ones unread."""
    decode_sparse: Callable[[Payload, int], Sparse] | None = field(default=None, compare=False, repr=False)
    """As `decode`, without the zeros; None where payloads are dense."""
    fold_back: Callable[[Payload, State], State] | None = field(default=None, compare=False, repr=False)
    """fold_back(payload, state): puts a refused payload back into the residual; None where nothing is remembered."""
    feedback: Callable[[Tensor, Tensor, float, State], tuple[Payload, State]] | None = field(
        default=None, compare=False, repr=False
    )
    """feedback(vector, residual, beta, state): residual <- beta * residual + vector - decode(payload), in place and
    without a second dense vector; `vector` was checked. None where `error_feedback` has to do it with one."""
    then: Callable[[Codec], Codec] | None = field(default=None, compare=False, repr=False)
    """then(codec): this codec with its numbers coded by `codec`; None where there is nothing left to code."""
    bind: Callable[[Sequence[Shape]], Codec] | None = field(default=None, compare=False, repr=False)
    """bind(shapes): this codec for tensors of these shapes, one after the other; None where shapes mean nothing."""
    ladder: Ladder | None = field(default=None, compare=False, repr=False)
    """How to make it send more or less; None where its spec says all."""


def bind(codec: Codec, shapes: Sequence[Shape]) -> Codec:
    """`codec` for this layout: codecs that treat matrices and small tensors differently learn the shapes here."""
    return codec if codec.bind is None else codec.bind(tuple(tuple(shape) for shape in shapes))


def with_feedback(codec: Codec, vector: Tensor, residual: Tensor, beta: float, state: State) -> tuple[Payload, State]:
    """The codec's own `feedback`, or the same for any codec through one decoded vector."""
    if codec.feedback is not None:
        return codec.feedback(vector, residual, beta, state)
    residual.mul_(beta).add_(vector)
    payload, state = codec.encode(residual, state)
    residual.sub_(codec.decode(payload, residual.numel()).to(residual.device))
    return payload, state


def stateless(d: int) -> State:
    """The state of a codec that remembers nothing."""
    return {}


def check_form(vector: Tensor) -> Tensor:
    """`vector`, detached, once it is known to be a contiguous float32 [d]; ConfigError otherwise."""
    if vector.dtype != torch.float32 or vector.dim() != 1 or not vector.is_contiguous():
        got = f"{str(vector.dtype).removeprefix('torch.')} {tuple(vector.shape)}"
        raise ConfigError(f"a codec got {got}, expected a contiguous float32 vector; flatten the model's layout first")
    return vector.detach()


def checked(vector: Tensor) -> Tensor:
    """As `check_form`, and every element is known to be finite."""
    vector = check_form(vector)
    if not finite(vector):
        raise ConfigError("a codec got NaN or infinity, expected finite numbers; drop this update and look at the loss")
    return vector


def finite(vector: Tensor) -> bool:
    """True when no element is NaN or infinite; one read pass, no copy."""
    fast = kernels.in_use() if vector.device.type == "cpu" else None
    if fast is not None:
        return int(fast.top(vector.numpy().view("i4"))) < INFINITY
    if vector.numel() == 0 or math.isfinite(float(vector.sum())):
        return True
    low, high = torch.aminmax(vector)
    return math.isfinite(float(low)) and math.isfinite(float(high))
