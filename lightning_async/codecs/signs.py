"""`signsgd`: one bit per number and the mean magnitude of its block; body: means (bfloat16 each), then signs.

With error feedback it converges where bare signs need not (Karimireddy et al. 2019, arXiv:1901.09847, section 3).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lightning_async import spec
from lightning_async.codecs import blocks, envelope
from lightning_async.codecs.base import Codec, Payload, State, checked, stateless
from lightning_async.codecs.envelope import Array
from lightning_async.codecs.integers import check_block, check_scales
from lightning_async.codecs.memory import as_tensor

KIND = 4


def signsgd(block: int = 4096) -> Codec:
    """1 + 16 / block bits per number: sign(x) times the mean |x| of its block. Zero counts as positive."""
    check_block("signsgd", block)

    def size(d: int) -> int:
        return envelope.HEADER_BYTES + 2 * -(-d // block) + -(-d // 8)

    def encode(vector: Tensor, state: State) -> tuple[Payload, State]:
        x = checked(vector).cpu().numpy()
        buffer = envelope.new(size(x.size))
        means, signs = _sections(buffer[envelope.HEADER_BYTES :], x.size, block)
        for part, some in blocks.pieces(x.size, 8 * block):
            few = slice(8 * some.start, 8 * some.stop)
            means[few] = _means(x[part], block)
            signs[part.start // 8 : -(-part.stop // 8)] = np.packbits(np.signbit(x[part]), bitorder="little")
        return envelope.seal(buffer, KIND, x.size), state

    def decode(payload: Payload, d: int) -> Tensor:
        reader = envelope.opened("signsgd", payload, KIND, d, size(d))
        means, signs = _sections(reader.take(size(d) - envelope.HEADER_BYTES), d, block)
        check_scales("signsgd", means, 1)
        out = np.empty(d, dtype=np.float32)
        for part, some in blocks.pieces(d, 8 * block):
            few, n = slice(8 * some.start, 8 * some.stop), part.stop - part.start
            flags = np.unpackbits(signs[part.start // 8 : -(-part.stop // 8)], count=n, bitorder="little")
            blocks.dequantise(means[few], np.int8(1) - np.int8(2) * flags.view(np.int8), block, out[part])
        return as_tensor(out)

    return Codec(
        spec=spec.call("signsgd", block=block),
        needs_feedback=True,
        init=stateless,
        encode=encode,
        decode=decode,
        max_bytes=size,
    )


def _sections(body: Array, d: int, block: int) -> tuple[Array, Array]:
    means = 2 * -(-d // block)
    return body[:means].view("<u2"), body[means:]


def _means(x: Array, block: int) -> Array:
    """Each block's mean magnitude as a bfloat16 (uint16), cut off."""
    starts = np.arange(0, x.size, block)
    counts = np.diff(np.append(starts, x.size))
    means = np.add.reduceat(np.abs(x), starts, dtype=np.float64) / counts
    narrow: Array = (means.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype("<u2")
    return narrow
