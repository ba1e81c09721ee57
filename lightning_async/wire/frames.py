"""Messages <-> byte frames (docs/protocol.md, sections 1, 2 and 6). Pure: no socket, no clock.

A message on the wire is the frames `b""`, header, payload 1, payload 2, ... The empty delimiter is what a plain REQ
socket puts first, so such a client needs no more than the header. The header is small (msgpack, checked field by
field); the payload frames are raw vectors and are passed through as they are: neither side copies them here.

Rule of this file: whatever bytes come in, the result is an Envelope or a FrameError, in bounded memory. A FrameError
names the request it belongs to when that much could be read, so that a server can answer it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import msgpack

from lightning_async.errors import CallerError, ProtocolError
from lightning_async.wire.checksum import checksum
from lightning_async.wire.fields import INT_RANGE, MAX_ITEMS, MAX_STRING, read, write
from lightning_async.wire.messages import REPLIES, REQUESTS, Message
from lightning_async.wire.parts import PARTS

__all__ = ["MAX_HEADER_BYTES", "MAX_PAYLOAD_FRAMES", "PROTOCOL_VERSION", "Envelope", "Frame", "FrameError"]
__all__ += ["VersionError", "checksum", "flat", "pack", "peek", "unpack"]

Frame = bytes | bytearray | memoryview

PROTOCOL_VERSION = 1
MAGIC = b"LA"
PREFIX_BYTES = 8
MAX_HEADER_BYTES = 4 * 2**20
MAX_PAYLOAD_FRAMES = MAX_ITEMS
MAX_CONTAINERS = 400_000  # lists and maps in one header

TYPES: dict[str, type] = {kind.__name__: kind for kind in (*REQUESTS, *REPLIES, *PARTS)}
_RESERVED = frozenset("tic")


@dataclass(frozen=True)
class Envelope:
    """A message, the request it is or answers (`id` >= 1, chosen by the asking side), and its vectors.

    `sums` are the checksums of the payload, of an envelope that was read and found whole; else there are none.
    """

    id: int
    message: Message
    payload: tuple[Frame, ...] = ()
    sums: tuple[int, ...] = field(default=(), compare=False, repr=False)


class FrameError(ProtocolError):
    """Frames that are no message. `request` is the id they carry, 0 when that cannot be read."""

    def __init__(self, text: str, request: int = 0) -> None:
        super().__init__(text)
        self.request = request


class VersionError(FrameError):
    """A header of another protocol version: `theirs` is what it says, `ours` what this side speaks."""

    def __init__(self, theirs: int, request: int = 0) -> None:
        super().__init__(
            f"got protocol version {theirs}, this side speaks {PROTOCOL_VERSION}; update the older", request
        )
        self.theirs = theirs
        self.ours = PROTOCOL_VERSION


def pack(envelope: Envelope, sums: Sequence[int] | None = None) -> list[Frame]:
    """The frames of `envelope`; payload frames are the same objects, but views of wider items become views of bytes.

    `sums` are the checksums of the payload frames when they are known already (a snapshot that goes to many).
    Raises CallerError for a message that its reader would refuse.
    """
    payload = [flat(frame) for frame in envelope.payload]
    if len(payload) > MAX_PAYLOAD_FRAMES:
        raise CallerError(f"{len(payload)} payload frames; a message has at most {MAX_PAYLOAD_FRAMES}")
    try:
        fields = write(envelope.message)
    except ValueError as error:
        raise CallerError(f"cannot send {error}") from error
    head = {
        "t": type(envelope.message).__name__,
        "i": envelope.id,
        "c": [checksum(frame) for frame in payload] if sums is None else list(sums),
    }
    header = sealed(msgpack.packb(head | fields))
    if len(header) > MAX_HEADER_BYTES:
        raise CallerError(f"{head['t']} has a header of {len(header)} bytes; at most {MAX_HEADER_BYTES} are read")
    return [b"", header, *payload]


def sealed(body: bytes, version: int = PROTOCOL_VERSION) -> bytes:
    """The header around a msgpack map: what it is, its version, and the CRC-32 of the map."""
    return MAGIC + bytes((version, 0)) + crc32(body).to_bytes(4, "little") + body


def unpack(frames: Sequence[Frame], *, verify: bool = True) -> Envelope:
    """The envelope in `frames`. Raises FrameError for anything else, VersionError for another protocol version.

    `verify=False` leaves the checksums of the payload unread (their number still has to fit).
    """
    envelope, sums = _read(frames)
    payload = tuple(frames[2:])
    try:
        compared = _compare(sums, payload, verify)
    except ValueError as error:
        raise FrameError(str(error), envelope.id) from None
    return Envelope(id=envelope.id, message=envelope.message, payload=payload, sums=compared)


def peek(header: Frame) -> Envelope:
    """What a header says, of a message whose payload is not here (yet). Raises as `unpack`."""
    return _read([b"", header])[0]


def _read(frames: Sequence[Frame]) -> tuple[Envelope, Any]:
    """The message without its payload, and what it says of the payload's checksums."""
    version, head = _split(frames)
    request = head.get("i")
    if type(request) is not int or request < 1 or request not in INT_RANGE:
        request = 0
    if version != PROTOCOL_VERSION:
        raise VersionError(version, request)
    if request == 0:
        raise FrameError("header without a request id 'i' >= 1")
    try:
        message = read(_kind(head.get("t")), {key: value for key, value in head.items() if key not in _RESERVED})
    except ValueError as error:
        raise FrameError(str(error), request) from None
    return Envelope(id=request, message=message), head.get("c")


def _split(frames: Sequence[Frame]) -> tuple[int, dict[str, Any]]:
    """Version and msgpack map of the header."""
    if not 2 <= len(frames) <= 2 + MAX_PAYLOAD_FRAMES or len(frames[0]) != 0:
        raise FrameError(f"got {len(frames)} frames, expected an empty one, a header and the payload")
    header = memoryview(frames[1]).cast("B") if len(frames[1]) else memoryview(b"")
    if len(header) > MAX_HEADER_BYTES:
        raise FrameError(f"header of {len(header)} bytes; at most {MAX_HEADER_BYTES} are read")
    if len(header) <= len(MAGIC) + 2 or header[:2] != MAGIC:
        raise FrameError("this is not the protocol of lightning_async: its headers begin with 'LA'")
    version, body = header[2], header[PREFIX_BYTES:]
    if version == PROTOCOL_VERSION and crc32(body) != int.from_bytes(header[4:PREFIX_BYTES], "little"):
        raise FrameError("the header was altered on the way: its CRC-32 does not fit")
    try:
        return version, _decode(body)
    except FrameError:
        if version != PROTOCOL_VERSION:
            raise VersionError(version) from None
        raise


def _decode(body: memoryview) -> dict[str, Any]:
    left = MAX_CONTAINERS

    def count(container: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {MAX_CONTAINERS} lists and maps")
        return container

    try:
        head = msgpack.unpackb(
            body,
            list_hook=count,
            object_hook=count,
            strict_map_key=True,
            max_str_len=4 * MAX_STRING,
            max_bin_len=0,
            max_ext_len=0,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise FrameError(f"header that is no msgpack map within the limits: {error}"[:300]) from None
    if type(head) is not dict:
        raise FrameError(f"header that is no msgpack map but {type(head).__name__}")
    return head


def _kind(name: Any) -> type:
    kind = TYPES.get(name) if type(name) is str else None
    if kind is None:
        raise ValueError(f"unknown message {name!r}"[:100])
    return kind


def _compare(sums: Any, payload: tuple[Frame, ...], verify: bool) -> tuple[int, ...]:
    """The checksums of `payload`, which are those that the header gives; none where nobody looked."""
    if type(sums) is not list or len(sums) != len(payload) or any(type(value) is not int for value in sums):
        raise ValueError(f"header must carry one checksum for each of its {len(payload)} payload frames")
    if not verify:
        return ()
    for index, (expected, frame) in enumerate(zip(sums, payload, strict=True)):
        if (got := checksum(frame)) != expected:
            raise ValueError(
                f"payload frame {index} was altered on the way: checksum {got}, its header says {expected}"
            )
    return tuple(sums)


def read_only(frames: Sequence[Frame]) -> list[memoryview]:
    """The same memory, that whoever gets these cannot write to; the `len` of each is its bytes."""
    return [memoryview(flat(frame)).toreadonly() for frame in frames]


def flat(frame: Frame) -> Frame:
    """The same memory as a frame whose `len` is its bytes."""
    if isinstance(frame, memoryview) and frame.format != "B":
        return frame.cast("B") if frame.nbytes else b""
    return frame
