"""The sixteen bytes before every payload that has a structure, and the reader that never runs past the end.

    offset  size  field
    0       1     kind: which format the body has
    1       1     version of that format: 1
    2       2     zero
    4       4     digest of everything but these four bytes
    8       8     d, the length of the vector

All numbers are little-endian. The digest finds accidents, not forgers: those are the frame's business. It runs at the
speed of memory, where zlib.crc32 took twice as long as the quantising itself: the body as 64-bit words (zero padded)
in rows of 512 (the last one padded, and there even if nothing is left for it), each row's sum of word * key modulo 2^64
with the fixed odd keys splitmix64(1..512) | 1, and CRC-32 over header (digest zero), sums and u64 length of the body.
Every changed word changes its row's sum, because an odd key has an inverse.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, TypeAlias

import numpy as np

from lightning_async.codecs import kernels
from lightning_async.codecs.base import Payload
from lightning_async.codecs.memory import fresh
from lightning_async.errors import PayloadError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

HEADER = struct.Struct("<BBHIQ")
HEADER_BYTES = HEADER.size
INNER = HEADER_BYTES + 8  # where the payload in an `around` begins
VERSION = 1
ROW = 512


def splitmix(z: Array) -> Array:
    """splitmix64's output for each counter (uint64): well mixed 64 bits, the same on every machine."""
    with np.errstate(over="ignore"):
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Array = z ^ (z >> np.uint64(31))
        return mixed


KEYS = splitmix(np.arange(1, ROW + 1, dtype=np.uint64)) | np.uint64(1)


def new(size: int) -> Array:
    """A payload of `size` bytes, header included, to be filled and then sealed."""
    return fresh(size)


def seal(buffer: Array, kind: int, d: int) -> Payload:
    """Writes the header in front of the body that `buffer` holds; the payload is a view of the buffer."""
    header = HEADER.pack(kind, VERSION, 0, 0, d)
    HEADER.pack_into(buffer.data, 0, kind, VERSION, 0, digest(header, buffer[HEADER_BYTES:]), d)
    return buffer.data


def around(payload: Payload, choice: int, kind: int, d: int) -> Payload:
    """The payload whose body is u64 `choice`, then another codec's `payload`: what `Reader.inner` takes apart."""
    inner = np.frombuffer(payload, dtype=np.uint8)
    buffer = new(INNER + inner.size)
    buffer[HEADER_BYTES:INNER] = np.frombuffer(choice.to_bytes(8, "little"), dtype=np.uint8)
    buffer[INNER:] = inner
    return seal(buffer, kind, d)


def joined(parts: list[bytes], kind: int, d: int) -> Payload:
    """The payload whose body is these parts in order."""
    return seal(np.frombuffer(bytearray(b"".join([bytes(HEADER_BYTES), *parts])), dtype=np.uint8), kind, d)


def opened(name: str, payload: Payload, kind: int, d: int, most: int) -> Reader:
    """A reader at the body's start, once length, header and digest are right; PayloadError otherwise."""
    data = np.frombuffer(payload, dtype=np.uint8)
    if not HEADER_BYTES <= data.size <= most:
        raise PayloadError(f"a {name} payload has {data.size} bytes, expected {HEADER_BYTES} to {most}; refuse it")
    got_kind, version, zero, got_digest, got_d = HEADER.unpack_from(data.data, 0)
    if (got_kind, version, zero, got_d) != (kind, VERSION, 0, d):
        got = f"kind {got_kind} version {version} for {got_d} parameters"
        raise PayloadError(f"got {got}, expected {name}: kind {kind} version {VERSION} for {d}; compare both specs")
    if got_digest != digest(HEADER.pack(kind, VERSION, 0, 0, d), data[HEADER_BYTES:]):
        raise PayloadError(f"a {name} payload was altered on its way: its digest does not fit; ask for it again")
    return Reader(name, data)


class Reader:
    """Takes fields off a payload in order; a field that is not all there is a PayloadError."""

    def __init__(self, name: str, data: Array) -> None:
        self.name = name
        self.data = data
        self.at = HEADER_BYTES

    def take(self, size: int) -> Array:
        """The next `size` bytes, as a view."""
        if size > self.data.size - self.at:
            raise PayloadError(f"a {self.name} payload of {self.data.size} bytes ends too early; refuse it")
        self.at += size
        return self.data[self.at - size : self.at]

    def array(self, count: int, dtype: str) -> Array:
        """The next `count` numbers of `dtype`."""
        return self.take(count * np.dtype(dtype).itemsize).view(dtype)

    def number(self, dtype: str) -> int:
        """The next integer."""
        return int(self.array(1, dtype)[0])

    def expect(self, what: str, dtype: str, expected: int) -> None:
        """PayloadError unless the next integer is the expected one."""
        got = self.number(dtype)
        if got != expected:
            raise PayloadError(
                f"a {self.name} payload has {what} {got}, this run's codec {expected}; compare both specs"
            )

    def inner(self) -> tuple[int, Payload]:
        """(choice, payload) of a body that `around` has written."""
        choice = self.number("<u8")
        return choice, self.take(self.data.size - self.at).data

    def end(self) -> None:
        """PayloadError unless everything was taken."""
        if self.at != self.data.size:
            raise PayloadError(f"a {self.name} payload has {self.data.size - self.at} bytes too many; refuse it")


def digest(header: bytes, body: Array) -> int:
    """The digest of a header whose digest field is zero, and a body of any length."""
    full = body.size // (8 * ROW)
    rows = body[: full * 8 * ROW]
    rest = np.zeros(8 * ROW, dtype=np.uint8)
    rest[: body.size - rows.size] = body[rows.size :]
    sums = np.empty(full + 2, dtype="<u8")
    _row_sums(rows, sums[:full])
    sums[full] = (rest.view("<u8") * KEYS).sum(dtype=np.uint64)
    sums[full + 1] = body.size
    return zlib.crc32(sums.data, zlib.crc32(header))


def _row_sums(rows: Array, sums: Array) -> None:
    if rows.size == 0:
        return
    words = rows.view("<u8") if rows.ctypes.data % 8 == 0 else rows.copy().view("<u8")
    fast = kernels.compiled()
    if fast is None:
        np.matmul(words.reshape(-1, ROW), KEYS, out=sums)
    else:
        fast.row_sums(words, KEYS, sums)
