"""A message that comes in chunks, as its receiver knows it. Memory grows with what has come,
never with what was said. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_async.errors import PeerError
from lightning_async.transport.base import Frame
from lightning_async.transport.cutting import digest
from lightning_async.wire.frames import MAX_HEADER_BYTES, Envelope, FrameError, peek
from lightning_async.wire.parts import PARTS, Chunk, Offer


class Gathered:
    """What has come of an offered message. Raises FrameError for an offer that is none, or larger than
    `largest_bytes` a frame allow."""

    def __init__(self, request: int, offer: Offer, payload: Sequence[Frame], largest_bytes: float, now: float) -> None:
        if len(payload) != 1 or len(payload[0]) > MAX_HEADER_BYTES or len(offer.transfer) > 64:
            raise FrameError("an offer without the header of its message", request)
        total = sum(offer.sizes)
        if min(offer.sizes, default=0) < 0 or not 0 < total <= 2 * largest_bytes or max(offer.sizes) > largest_bytes:
            raise FrameError(f"got an offer of {total} bytes; {largest_bytes:.0f} a frame are taken here", request)
        self.header = bytes(payload[0])
        self.envelope = peek(self.header)  # without its payload
        if self.envelope.id != request or isinstance(self.envelope.message, PARTS):
            raise FrameError("an offer of another message than its request id says", request)
        self.transfer, self.round, self.there, self.heard_at = offer.transfer, offer.round, 0, now
        self._sizes, self.total = list(offer.sizes), total
        self._frames: list[bytearray] = [bytearray()]

    def take(self, envelope: Envelope, chunk: Chunk, now: float) -> bool:
        """Take what follows; whether everything up to its end is here. Raises FrameError for what cannot be a part."""
        data = memoryview(envelope.payload[0]) if len(envelope.payload) == 1 else memoryview(b"")
        end = chunk.offset + len(data)
        if envelope.id != self.envelope.id or not data or chunk.offset < 0 or end > self.total:
            raise FrameError(f"got bytes {chunk.offset} to {end} of a message of {self.total}", envelope.id)
        self.round, self.heard_at = max(self.round, chunk.round), now
        if end <= self.there:
            return True
        if chunk.offset != self.there or digest(data) != chunk.digest:
            return False
        self._add(data)
        self.there = end
        return True

    def _add(self, data: memoryview) -> None:
        while len(data):
            while len(self._frames[-1]) == self._sizes[len(self._frames) - 1]:
                self._frames.append(bytearray())
            room = self._sizes[len(self._frames) - 1] - len(self._frames[-1])
            self._frames[-1] += data[:room]
            data = data[room:]

    @property
    def message(self) -> list[memoryview]:
        """All of it, once everything is there."""
        if self.there != self.total:
            raise PeerError(f"{self.there} of {self.total} bytes are here")
        empty = [bytearray()] * (len(self._sizes) - len(self._frames))
        whole = [memoryview(frame).toreadonly() for frame in (*self._frames, *empty)]
        return [memoryview(b""), memoryview(self.header), *whole]
