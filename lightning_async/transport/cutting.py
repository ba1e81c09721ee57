"""A message that leaves in chunks, as its sender knows it: what was sent, what has arrived, what comes next. Pure.

What the receiver has is always a beginning of the message, so one number says it. Chunks that got lost (a connection
broke, a frame was altered) are those after it. They are sent in another round, and what is said of an earlier round is
not listened to: it is about bytes that were under way when this round began.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from lightning_async.transport.base import Frame
from lightning_async.transport.pace import Pace
from lightning_async.wire.frames import Envelope, FrameError, flat
from lightning_async.wire.parts import Chunk, Have, Offer

DIGEST_BYTES = 16


def digest(data: Frame) -> str:
    """What a chunk says of its bytes."""
    return blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


class Cut:
    """`frames` are the message, `request` is its id, `transfer` what it is called on the line."""

    def __init__(self, transfer: str, request: int, peer: bytes, frames: Sequence[Frame], pace: Pace) -> None:
        self.transfer, self.request, self.peer, self.pace = transfer, request, peer, pace
        self._header = frames[1]
        self._views = [memoryview(flat(frame)) for frame in frames[2:]]
        self.total = sum(map(len, self._views))
        self.there = self._next = self._round = 0  # bytes the receiver has, bytes sent
        self.heard_at = pace.heard_at
        self._waits, self._offers = False, True  # for what the receiver says first; whether to ask it

    @property
    def under_way(self) -> int:
        """Bytes that were sent and have not been acknowledged."""
        return max(0, self._next - self.there)

    @property
    def done(self) -> bool:
        return self.there >= self.total

    def ask(self, peer: bytes, now: float) -> None:
        """Before anything else is sent, ask what `peer` has."""
        self.peer, self._waits, self._offers = peer, True, True
        self._round += 1
        self._next = self.there
        self.pace.again(self.there, now)

    def look(self, now: float) -> None:
        """Time has passed: perhaps what was sent has not arrived."""
        if (self._waits or self.under_way) and self.pace.stalled(now):
            self.ask(self.peer, now)

    def next(self, now: float) -> Envelope | None:
        """What is to be sent now; to be confirmed by `sent`."""
        if self._offers:
            sizes = [len(view) for view in self._views]
            return Envelope(
                self.request, Offer(transfer=self.transfer, sizes=sizes, round=self._round), (self._header,)
            )
        size = min(self.pace.chunk, self.total - self._next)
        if self._waits or not size or self.under_way + size > max(size, self.pace.window):
            return None
        data = self._slice(self._next, self._next + size)
        chunk = Chunk(transfer=self.transfer, offset=self._next, digest=digest(data), round=self._round)
        return Envelope(self.request, chunk, (data,))

    def sent(self, envelope: Envelope, now: float) -> None:
        """`envelope`, which `next` gave, is on its way."""
        if isinstance(envelope.message, Offer):
            self._offers = False
        else:
            self._next += len(envelope.payload[0])
            self.pace.sent(self._next, now)

    def heard(self, have: Have, peer: bytes, now: float) -> None:
        """The receiver says what it has. Raises FrameError for what it cannot have."""
        if have.offset < -1 or have.offset > self.total:
            raise FrameError(f"has {have.offset} of {self.total} bytes")
        moved = peer != self.peer
        if have.round != self._round and not moved:
            return
        if moved and not have.missing:
            return  # of a connection that is no more
        self.peer, self.heard_at = peer, now
        if have.offset < 0:
            self.there = 0
            self.ask(peer, now)
            return
        if self._waits and not moved:
            self.there = self._next = have.offset
            self._waits = False
            self.pace.again(have.offset, now)
        elif have.missing:
            self.there = self._next = have.offset
            self._waits = self._offers = False
            self._round += 1
            self.pace.again(have.offset, now)
        elif have.offset > self.there:
            self.there, self._next = have.offset, max(self._next, have.offset)
            self.pace.arrived(have.offset, now)

    def _slice(self, begin: int, end: int) -> Frame:
        """These bytes of the payload; a view where they lie in one frame."""
        found, at = [], 0
        for view in self._views:
            if at < end and at + len(view) > begin:
                found.append(view[max(0, begin - at) : end - at])
            at += len(view)
        return found[0] if len(found) == 1 else b"".join(found)
