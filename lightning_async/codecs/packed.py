"""`packed`: float32 exactly, in about 17 % fewer bytes: numbers of one tensor have few exponents, which deflate well.

Every number's bits are turned left by one, so that its uppermost byte is the exponent alone and the sign is the lowest
bit. The four bytes then go into four planes, and a plane that zlib shortens is written deflated: of trained weights
that is the uppermost; of weights that were bfloat16 once, the two lower ones too. A sample decides which are tried.
Body: for each plane, the uppermost first, u8 way (0 plain, 1 zlib), u64 length, bytes.

A plane is inflated to d bytes at the most, whatever it holds: a payload cannot make its reader fill its memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lightning_async.codecs import envelope
from lightning_async.codecs.base import Codec, Payload, State, checked, stateless
from lightning_async.codecs.dense import check_finite
from lightning_async.codecs.envelope import Array, Reader
from lightning_async.codecs.memory import fresh
from lightning_async.errors import PayloadError

KIND = 10
PLANES = (3, 2, 1, 0)
PLAIN, DEFLATED = 0, 1
HEAD = struct.Struct("<BQ")
PIECE = 1 << 18
SAMPLES, SAMPLE = 64, 1024
WORTH = 0.95  # of a plane's length, for its sample, before all of it is tried


def packed() -> Codec:
    """Lossless: a float32 in 26 to 28 bits where numbers are weights or gradients, fewer where many are alike."""
    return Codec(spec="packed", lossless=True, init=stateless, encode=_encode, decode=_decode, max_bytes=_max_bytes)


def _max_bytes(d: int) -> int:
    return envelope.HEADER_BYTES + 4 * (HEAD.size + d)


def _encode(vector: Tensor, state: State) -> tuple[Payload, State]:
    bits = checked(vector).cpu().numpy().view("<u4")
    parts: list[bytes] = []
    for plane in PLANES:
        way, data = _written(bits, plane)
        parts += [HEAD.pack(way, sum(len(piece) for piece in data)), *data]
    buffer = np.empty(envelope.HEADER_BYTES + sum(len(part) for part in parts), dtype=np.uint8)
    at = envelope.HEADER_BYTES
    for part in parts:
        buffer[at : at + len(part)] = np.frombuffer(part, dtype=np.uint8)
        at += len(part)
    return envelope.seal(buffer, KIND, bits.size), state


def _written(bits: Array, plane: int) -> tuple[int, list[bytes]]:
    """How one plane is written, and its bytes in pieces."""
    stride = max(SAMPLE, bits.size // SAMPLES)
    sample = np.concatenate([_plane(bits[low : low + SAMPLE], plane) for low in range(0, bits.size, stride)] or [bits])
    if sum(len(piece) for piece in _deflated(iter([sample]))) <= WORTH * sample.size:
        data = _deflated(_plane(bits[low : low + PIECE], plane) for low in range(0, bits.size, PIECE))
        if sum(len(piece) for piece in data) < bits.size:
            return DEFLATED, data
    return PLAIN, [_plane(bits[low : low + PIECE], plane).tobytes() for low in range(0, bits.size, PIECE)]


def _plane(bits: Array, plane: int) -> Array:
    """One byte of each number, whose bits are turned left by one."""
    turned: Array = bits >> np.uint32(8 * plane - 1) if plane else (bits << np.uint32(1)) | (bits >> np.uint32(31))
    out: Array = turned.astype(np.uint8)
    return out


def _deflated(pieces: Iterator[Array]) -> list[bytes]:
    """One zlib stream. Runs of one byte are all the repetition that such planes have: to look for more takes longer."""
    squeeze = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return [*(squeeze.compress(piece.data) for piece in pieces), squeeze.flush()]


def _decode(payload: Payload, d: int) -> Tensor:
    reader = envelope.opened("packed", payload, KIND, d, _max_bytes(d))
    out = fresh(4 * d)
    for plane in PLANES:
        out[plane::4] = _read(reader, d)
    reader.end()
    bits = out.view("<u4")
    for low in range(0, d, PIECE):
        piece = bits[low : low + PIECE]
        piece[:] = (piece >> 1) | (piece << 31)
    vector = torch.from_numpy(bits.view(np.float32))
    check_finite("packed", vector)
    return vector


def _read(reader: Reader, d: int) -> Array:
    """The next plane: uint8 [d]."""
    way, length = reader.number("u1"), reader.number("<u8")
    data = reader.take(length)
    if way == DEFLATED:
        data = _inflated(data, d)
    elif way != PLAIN:
        raise PayloadError(f"a packed payload has a plane written in way {way}, known are 0 and 1; refuse it")
    if data.size != d:
        raise PayloadError(f"a packed payload has a plane of {data.size} bytes for {d} numbers; refuse it")
    return data


def _inflated(data: Array, d: int) -> Array:
    """Of a stream that holds exactly d bytes; it is not read beyond them."""
    stretch = zlib.decompressobj()
    try:
        plane = stretch.decompress(data.data, d + 1)
    except zlib.error as error:
        raise PayloadError(f"a packed payload has a plane that zlib cannot read ({error}); refuse it") from error
    if not stretch.eof or stretch.unused_data:
        raise PayloadError(f"a packed payload has a plane that does not end after {d} bytes; refuse it")
    return np.frombuffer(plane, dtype=np.uint8)
