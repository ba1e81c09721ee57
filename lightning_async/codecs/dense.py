"""Plain numbers in the layout's order, little-endian, without a header: `none` (float32), `fp16`, `bf16`.

Their payloads carry no digest of their own: the frame around them has one, and a length that is right is all the
structure they have. `none` copies nothing in either direction. The others work in pieces that stay in the cache, so
that checking and converting read memory once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_async.codecs import kernels
from lightning_async.codecs.base import Codec, Payload, State, check_form, checked, finite, stateless
from lightning_async.codecs.memory import as_array, as_payload, as_tensor, fresh
from lightning_async.errors import ConfigError, PayloadError

PIECE = 1 << 17


def none() -> Codec:
    """float32 as it is: exact, 32 bits per parameter. Payload and decoded vector are views, not copies."""

    def encode(vector: Tensor, state: State) -> tuple[Payload, State]:
        return as_payload(checked(vector)), state

    def decode(payload: Payload, d: int) -> Tensor:
        check_length("none", payload, 4 * d)
        vector = as_tensor(as_array(payload, "<f4"))
        check_finite("none", vector)
        return vector

    return Codec(spec="none", lossless=True, init=stateless, encode=encode, decode=decode, max_bytes=lambda d: 4 * d)


def fp16() -> Codec:
    """IEEE half: |error| <= 2^-11 |x| + 2^-25. A value that rounds to beyond 65,504 is a ConfigError."""
    return _narrow("fp16", torch.float16)


def bf16() -> Codec:
    """bfloat16: |error| <= 2^-8 |x|. A value in the last 0.2 % of float32's range is a ConfigError."""
    return _narrow("bf16", torch.bfloat16)


def _narrow(name: str, dtype: torch.dtype) -> Codec:
    def encode(vector: Tensor, state: State) -> tuple[Payload, State]:
        vector = check_form(vector).cpu()
        narrow = as_tensor(fresh(2 * vector.numel()).view("<i2"))
        for wide, out in zip(torch.split(vector, PIECE), torch.split(narrow.view(dtype), PIECE), strict=True):
            _convert(name, wide, out)
        return as_payload(narrow), state

    def decode(payload: Payload, d: int) -> Tensor:
        check_length(name, payload, 2 * d)
        narrow = as_tensor(as_array(payload, "<i2")).view(dtype)
        vector = as_tensor(fresh(4 * d).view(np.float32))
        for piece, out in zip(torch.split(narrow, PIECE), torch.split(vector, PIECE), strict=True):
            if top16(piece) >= _infinity(dtype):
                check_finite(name, piece.to(torch.float32))
            out.copy_(piece)
        return vector

    return Codec(spec=name, init=stateless, encode=encode, decode=decode, max_bytes=lambda d: 2 * d)


def _convert(name: str, wide: Tensor, out: Tensor) -> None:
    """Writes `wide` to the narrower `out`; ConfigError unless all of it is finite there too."""
    out.copy_(wide)
    if top16(out) >= _infinity(out.dtype):
        checked(wide)
        most = torch.finfo(out.dtype).max
        raise ConfigError(f"{name} got {float(wide.abs().max()):.6g}, expected at most {most:.6g}; take 'int8'")


def top16(narrow: Tensor) -> int:
    """The largest of these 16-bit floats without their signs, as bits; 0 of none. NaN is larger than infinity."""
    fast, bits = kernels.compiled(), narrow.view(torch.int16).numpy()
    if fast is not None:
        return int(fast.top16(bits))
    return int((bits & 0x7FFF).max()) if bits.size else 0


def _infinity(dtype: torch.dtype) -> int:
    return 0x7C00 if dtype == torch.float16 else 0x7F80


def check_length(name: str, payload: Payload, expected: int) -> None:
    """PayloadError unless the payload has exactly `expected` bytes."""
    got = memoryview(payload).nbytes
    if got != expected:
        raise PayloadError(f"a {name} payload has {got} bytes, this run's vector takes {expected}; refuse it")


def check_finite(name: str, vector: Tensor) -> None:
    """PayloadError if `vector` holds NaN or infinity."""
    if not finite(vector):
        raise PayloadError(f"a {name} payload decodes to NaN or infinity; refuse it")
