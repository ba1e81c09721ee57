"""Plain numbers in the layout's order, little-endian, without a header: `none` (float32), `fp16`, `bf16`.

Their payloads carry no digest of their own: the frame around them has one, and a length that is right is all the
structure they have. `none` copies nothing in either direction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_async.codecs.base import Codec, Payload, State, checked, finite, stateless
from lightning_async.codecs.memory import as_array, as_payload, as_tensor
from lightning_async.errors import ConfigError, PayloadError

LARGEST_FP16 = 65504.0


def none() -> Codec:
    """float32 as it is: exact, 32 bits per parameter. Payload and decoded vector are views, not copies."""

    def encode(vector: Tensor, state: State) -> tuple[Payload, State]:
        return as_payload(checked(vector)), state

    def decode(payload: Payload, d: int) -> Tensor:
        check_length("none", payload, 4 * d)
        return check_finite("none", as_tensor(as_array(payload, "<f4")))

    return Codec(spec="none", lossless=True, init=stateless, encode=encode, decode=decode, max_bytes=lambda d: 4 * d)


def fp16() -> Codec:
    """IEEE half: |error| <= 2^-11 |x| + 2^-25. A value beyond 65,504 is a ConfigError."""
    return _narrow("fp16", torch.float16, LARGEST_FP16)


def bf16() -> Codec:
    """bfloat16: |error| <= 2^-8 |x|, and the whole range of float32 but its last 0.4 %."""
    return _narrow("bf16", torch.bfloat16, torch.finfo(torch.bfloat16).max)


def _narrow(name: str, dtype: torch.dtype, largest: float) -> Codec:
    def encode(vector: Tensor, state: State) -> tuple[Payload, State]:
        return as_payload(_convert(name, checked(vector), dtype, largest)), state

    def decode(payload: Payload, d: int) -> Tensor:
        check_length(name, payload, 2 * d)
        halves = as_tensor(as_array(payload, "<i2")).view(dtype)
        return check_finite(name, halves.to(torch.float32))

    return Codec(spec=name, init=stateless, encode=encode, decode=decode, max_bytes=lambda d: 2 * d)


def _convert(name: str, vector: Tensor, dtype: torch.dtype, largest: float) -> Tensor:
    narrow = vector.to(dtype)
    if not finite(narrow):
        raise ConfigError(f"{name} got {float(vector.abs().max()):.3g}, expected at most {largest:.5g}; take 'int8'")
    return narrow


def check_length(name: str, payload: Payload, expected: int) -> None:
    """PayloadError unless the payload has exactly `expected` bytes."""
    got = memoryview(payload).nbytes
    if got != expected:
        raise PayloadError(f"a {name} payload has {got} bytes, this run's vector takes {expected}; refuse it")


def check_finite(name: str, vector: Tensor) -> Tensor:
    """`vector`, once it is known to hold no NaN and no infinity; PayloadError otherwise."""
    if not finite(vector):
        raise PayloadError(f"a {name} payload decodes to NaN or infinity; refuse it")
    return vector
