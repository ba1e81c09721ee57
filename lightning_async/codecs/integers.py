"""`int8` and `int4`: dense, blockwise scaled whole numbers; body: scales (bfloat16 each), then the numbers.

int8 numbers are bytes in two's complement; int4 numbers lie two in a byte (halves.py). Both are written piece by piece,
so that checking, scaling and rounding read the vector's memory once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_async import spec
from lightning_async.codecs import blocks, envelope
from lightning_async.codecs.base import Codec, Payload, State, check_form, checked, stateless
from lightning_async.codecs.envelope import Array
from lightning_async.codecs.memory import as_tensor, fresh
from lightning_async.errors import ConfigError, PayloadError

LONGEST_BLOCK = 1 << 16


def int8(block: int = 256, seed: int | None = None) -> Codec:
    """8 + 16 / block bits per number. |error| <= scale / 2, scale = max|x| / 127 of its block, rounded up by < 1 %.

    A `seed` makes the rounding stochastic and unbiased: |error| < scale; the state then counts the payloads.
    """
    return _codec(_Format(name="int8", kind=1, levels=127, per_byte=1, block=block), seed)


def int4(block: int = 64, seed: int | None = None) -> Codec:
    """4 + 16 / block bits per number; as `int8` with scale = max|x| / 7 of its block."""
    return _codec(_Format(name="int4", kind=2, levels=7, per_byte=2, block=block), seed)


def check_block(name: str, block: int) -> None:
    """ConfigError unless `block` is a multiple of 16 in 16..65,536."""
    if block not in range(16, LONGEST_BLOCK + 1, 16):
        raise ConfigError(f"{name} got block={block!r}, expected a multiple of 16 from 16 to {LONGEST_BLOCK}")


def check_scales(name: str, scales: Array, levels: int) -> Array:
    """`scales`, once levels * scale is known to be finite and not negative for each; PayloadError otherwise."""
    if scales.size and int(scales.max()) > blocks.largest_scale(levels):
        raise PayloadError(f"a {name} payload has a scale beyond float32; refuse it")
    return scales


def _codec(form: _Format, seed: int | None) -> Codec:
    check_block(form.name, form.block)
    options = {"block": form.block} if seed is None else {"block": form.block, "seed": seed}

    def encode(vector: Tensor, state: State) -> tuple[Payload, State]:
        key = None if seed is None else step_key(seed, int(state["step"]))
        payload = form.encode(check_form(vector).cpu(), key)
        return payload, state if seed is None else {"step": state["step"] + 1}

    return Codec(
        spec=spec.call(form.name, **options),
        init=stateless if seed is None else counting,
        encode=encode,
        decode=form.decode,
        max_bytes=form.size,
    )


def counting(d: int) -> State:
    """The state of a codec that counts its payloads, so that no two share their random numbers."""
    return {"step": torch.zeros((), dtype=torch.int64)}


def step_key(seed: int, step: int) -> int:
    """32 bits that differ from step to step: the upper half of splitmix64 of (seed, step)."""
    return (
        int(envelope.splitmix(np.array([(seed * 0x9E3779B97F4A7C15 + step) & (2**64 - 1)], dtype=np.uint64))[0]) >> 32
    )


@dataclass(frozen=True, kw_only=True)
class _Format:
    """Layout of the payload: where the scales end and how numbers lie in bytes."""

    name: str
    kind: int
    levels: int
    per_byte: int
    block: int

    def size(self, d: int) -> int:
        return envelope.HEADER_BYTES + 2 * -(-d // self.block) + -(-d // self.per_byte)

    def encode(self, vector: Tensor, key: blocks.Key) -> Payload:
        x = vector.numpy()
        buffer = envelope.new(self.size(x.size))
        scales, numbers = self._sections(buffer[envelope.HEADER_BYTES :], x.size)
        quantise = blocks.quantise_pairs if self.per_byte == 2 else blocks.quantise
        for part, some in blocks.pieces(x.size, self.block):
            finite = quantise(
                x[part], self.block, self.levels, scales[some], self._place(numbers, part), key, part.start
            )
            if not finite:
                checked(vector[part])
        return envelope.seal(buffer, self.kind, x.size)

    def decode(self, payload: Payload, d: int) -> Tensor:
        size = self.size(d)
        reader = envelope.opened(self.name, payload, self.kind, d, size)
        scales, numbers = self._sections(reader.take(size - envelope.HEADER_BYTES), d)
        check_scales(self.name, scales, self.levels)
        out = fresh(4 * d).view(np.float32)
        dequantise = blocks.dequantise_pairs if self.per_byte == 2 else blocks.dequantise
        for part, some in blocks.pieces(d, self.block):
            dequantise(scales[some], self._place(numbers, part), self.block, out[part])
        return as_tensor(out)

    def _place(self, numbers: Array, part: slice) -> Array:
        """Where the numbers of `part`, which starts with a block, lie in the payload."""
        if self.per_byte == 2:
            return numbers[part.start // 2 : -(-part.stop // 2)]
        return numbers[part].view(np.int8)

    def _sections(self, body: Array, d: int) -> tuple[Array, Array]:
        scales = 2 * -(-d // self.block)
        return body[:scales].view("<u2"), body[scales:]
