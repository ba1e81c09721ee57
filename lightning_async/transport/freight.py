"""Large messages between Envelope and transport: the one place that cuts them into chunks, and puts them together.

Link and server hand whole messages in and get whole messages out. A message that would take its line for longer than a
second leaves in chunks, so that small ones pass in between; what a broken connection has taken is sent again from
where it broke, in both directions. How chunks are said is wire/parts.py, one message that leaves is cutting.py, one
that comes is gathering.py; this file knows all of them, by who is at the other end.

Rule of this file: it belongs to one thread and has no socket, so every transport is the same to it. `owner` says who
speaks through a peer, empty for nobody: what one owner sends or gets is never another's, and has its own bounds.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from lightning_async.errors import NetworkError
from lightning_async.transport.base import Frame
from lightning_async.transport.cutting import Cut
from lightning_async.transport.gathering import Gathered
from lightning_async.transport.pace import SPAN_S, Pace
from lightning_async.wire.frames import Envelope, pack, peek
from lightning_async.wire.parts import Chunk, Drop, Have, Offer

CUT_BYTES = 256 * 1024  # a payload up to this size travels whole, but over a line that would take MOST_WHOLE_S
MOST_WHOLE_S = 8.0
THIN_BYTES_S = 4_000.0  # what a line is taken for that brings no word, however often it is dialled
KNOWN_S = 60.0  # for so long a measured speed is believed
MOST_LEAVING = 4  # messages in chunks to one owner at a time
MOST_TAKERS = 4096  # peers, before those that are gone are forgotten
MOST_DONE = 4  # of one owner, whose last acknowledgement may have been lost
LARGEST_BYTES = 4 * 2**30

Send = Callable[[bytes, Sequence[Frame]], bool]


@dataclass(frozen=True)
class Moving:
    """(bytes that are there, bytes in all) of what comes from somebody in chunks, and of what goes to him."""

    coming: tuple[int, int]
    going: tuple[int, int]


def _sum(parts: Iterable[Gathered | Cut]) -> tuple[int, int]:
    found = list(parts)
    return sum(part.there for part in found), sum(part.total for part in found)


class Freight:
    """Args:
    send: gives one message to the transport; False when it took none.
    owner: who is at the other end of a peer.
    room: messages of one owner that may be under way here at a time; another one takes the oldest one's place.
    keep_s: how long the beginning of a message is kept, and the rest of one, when nothing is heard of it.
    wanted: how many bytes a frame of a message with this request id may have here; 0: none of it is wanted.
    """

    def __init__(
        self,
        send: Send,
        owner: Callable[[bytes], str] = lambda peer: "all",
        clock: Callable[[], float] = time.monotonic,
        room: int = 1,
        keep_s: float = 300.0,
        wanted: Callable[[int], float] = lambda request: math.inf,
    ) -> None:
        self._send, self._owner, self._clock, self._room, self.keep_s = send, owner, clock, room, keep_s
        self._wanted = wanted
        self.largest_bytes = LARGEST_BYTES
        self.takers: set[bytes] = set()  # peers that take chunks
        self.held = False  # nothing leaves: the other side does not know us
        self.damaged = 0  # chunks that were not what their digest says, or not what follows
        self._salt = secrets.token_bytes(16)
        self._cuts: dict[str, dict[str, Cut]] = {}  # by owner and transfer
        self._gathered: dict[str, dict[str, Gathered]] = {}
        self._peers: dict[str, bytes] = {}  # where chunks of an owner came from last
        self._done: dict[str, dict[str, int]] = {}
        self._speeds: dict[str, tuple[float, float]] = {}  # bytes per second, and when that was

    # What leaves.

    def send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        """Send a message, whole or in chunks; again where it was broken off, if it is under way. False when the
        transport takes nothing for `peer`."""
        owner, size = self._owner(peer), sum(map(len, frames[2:]))
        if not owner or peer not in self.takers or not self._long(owner, size):
            return self._send(peer, frames)
        transfer, now = blake2b(bytes(frames[1]), key=self._salt, person=b"cut", digest_size=16), self._clock()
        transfer.update(owner.encode())
        name, request = transfer.hexdigest(), peek(frames[1]).id
        cut = self._cuts.get(owner, {}).get(name)
        if cut is not None:
            cut.ask(peer, now)
        else:
            self._make_room(owner, request)
            cut = Cut(name, request, peer, frames, Pace(size, now, self._speed(owner)))
            self._cuts.setdefault(owner, {})[name] = cut
        self._go(owner, cut)
        return True

    def speed(self, peer: bytes) -> float | None:
        """Bytes per second of the line to `peer`, as far as it was measured not long ago by what went in chunks."""
        return self._speed(self._owner(peer))

    def thin(self, peer: bytes) -> None:
        """Nothing comes from there, perhaps because too much was sent for its line: less at a time from now on."""
        self._speeds[self._owner(peer)] = THIN_BYTES_S, self._clock()

    def leaving(self, request: int) -> Cut | None:
        """The chunks of this request that are not all there."""
        return next((cut for cuts in self._cuts.values() for cut in cuts.values() if cut.request == request), None)

    def cancel(self, request: int) -> None:
        """Send no more of it: it was answered."""
        for owner, cuts in list(self._cuts.items()):
            for cut in [cut for cut in cuts.values() if cut.request == request]:
                self._remove(owner, cut)

    # What comes.

    def take(self, peer: bytes, envelope: Envelope) -> list[memoryview] | None:
        """The frames of a message whose last part this is, or None. Raises FrameError for what cannot be a part."""
        owner, part, now = self._owner(peer), envelope.message, self._clock()
        if owner and isinstance(part, Offer):
            self._offered(peer, owner, envelope, part, now)
        elif owner and isinstance(part, Chunk):
            return self._came(peer, owner, envelope, part, now)
        elif owner and isinstance(part, Have):
            self._told(peer, owner, envelope.id, part, now)
        elif owner and isinstance(part, Drop):
            self._gathered.get(owner, {}).pop(part.transfer, None)
            if (cut := self._cuts.get(owner, {}).get(part.transfer)) is not None:
                self._remove(owner, cut)
        return None

    def arriving(self) -> Iterator[tuple[bytes, Envelope]]:
        """(peer, message without its payload) of each whose beginning is here."""
        for owner, found in self._gathered.items():
            for gathered in found.values():
                yield self._peers[owner], gathered.envelope

    def under_way(self) -> dict[str, Moving]:
        """What goes in chunks now, by owner."""
        names = [*self._gathered, *(owner for owner in self._cuts if owner not in self._gathered)]
        parts = {name: (self._gathered.get(name, {}).values(), self._cuts.get(name, {}).values()) for name in names}
        return {name: Moving(_sum(come), _sum(go)) for name, (come, go) in parts.items() if come or go}

    def forget(self, peer: bytes, request: int) -> None:
        """What is here of this message is not wanted."""
        found = self._gathered.get(self._owner(peer), {})
        for name in [name for name, gathered in found.items() if gathered.envelope.id == request]:
            del found[name]

    def part_with(self, owner: str) -> None:
        """It has gone and will not complete anything: nothing that is its own is kept."""
        for found in (self._cuts, self._gathered, self._done, self._speeds, self._peers):
            found.pop(owner, None)

    def go_on(self) -> None:
        """The other side knows us (again): what went or came in part before is to be completed."""
        self.held, now = False, self._clock()
        for owner, cuts in list(self._cuts.items()):
            for cut in list(cuts.values()):
                cut.heard_at = now
                cut.ask(cut.peer, now)
                self._go(owner, cut)
        for owner, found in self._gathered.items():
            for gathered in found.values():
                gathered.heard_at = now
                self._say(self._peers[owner], gathered, missing=True)

    def tick(self) -> None:
        """Time has passed. While nothing leaves it stands still."""
        if self.held:
            return
        now = self._clock()
        for owner, cuts in list(self._cuts.items()):
            for cut in list(cuts.values()):
                if now - cut.heard_at > self.keep_s:
                    self._remove(owner, cut)
                else:
                    cut.look(now)
                    self._go(owner, cut)
        for found in self._gathered.values():
            for name in [name for name, each in found.items() if now - each.heard_at > self.keep_s]:
                del found[name]
        if len(self.takers) > MOST_TAKERS:
            self.takers = {peer for peer in self.takers if self._owner(peer)}

    def _long(self, owner: str, size: int) -> bool:
        """Whether `size` bytes would keep small messages waiting for longer than SPAN_S, as far as is known."""
        speed = self._speed(owner)
        if speed is None:
            return size > CUT_BYTES
        return size > speed * (SPAN_S if size > CUT_BYTES else MOST_WHOLE_S)

    def _speed(self, owner: str) -> float | None:
        speed, at = self._speeds.get(owner, (0.0, 0.0))
        return speed if speed and self._clock() - at < KNOWN_S else None

    def _go(self, owner: str, cut: Cut) -> None:
        """Send of it what its pace allows."""
        now = self._clock()
        while not self.held and (envelope := cut.next(now)) is not None and self._give(cut.peer, envelope):
            cut.sent(envelope, now)

    def _give(self, peer: bytes, envelope: Envelope) -> bool:
        try:
            return self._send(peer, pack(envelope))
        except NetworkError:  # its queue is full: later
            return False

    def _told(self, peer: bytes, owner: str, request: int, have: Have, now: float) -> None:
        cut = self._cuts.get(owner, {}).get(have.transfer)
        if cut is None:
            if have.missing:
                self._give(peer, Envelope(request, Drop(transfer=have.transfer)))
            return
        cut.heard(have, peer, now)
        if cut.pace.bytes_per_s is not None:
            self._speeds[owner] = cut.pace.bytes_per_s, now
        if cut.done:
            self._remove(owner, cut)
        else:
            self._go(owner, cut)

    def _make_room(self, owner: str, request: int) -> None:
        """Another message takes the place of an older one to the same request, and of the oldest where it is full."""
        cuts = list(self._cuts.get(owner, {}).values())
        same = [cut for cut in cuts if cut.request == request]
        others = [cut for cut in cuts if cut.request != request]
        for cut in same + others[: max(0, len(others) - MOST_LEAVING + 1)]:
            self._give_up(owner, cut)

    def _give_up(self, owner: str, cut: Cut) -> None:
        self._remove(owner, cut)
        self._give(cut.peer, Envelope(cut.request, Drop(transfer=cut.transfer)))

    def _remove(self, owner: str, cut: Cut) -> None:
        self._cuts[owner].pop(cut.transfer, None)
        if not self._cuts[owner]:
            del self._cuts[owner]

    def _offered(self, peer: bytes, owner: str, envelope: Envelope, offer: Offer, now: float) -> None:
        done = self._done.get(owner, {})
        if offer.transfer in done and offer.round:
            self._give(
                peer,
                Envelope(envelope.id, Have(transfer=offer.transfer, offset=done[offer.transfer], round=offer.round)),
            )
            return
        done.pop(offer.transfer, None)
        most = min(self.largest_bytes, self._wanted(envelope.id))
        if not most:
            self._give(peer, Envelope(envelope.id, Drop(transfer=offer.transfer)))
            return
        found = self._gathered.setdefault(owner, {})
        if offer.transfer not in found:
            gathered = Gathered(envelope.id, offer, envelope.payload, most, now)
            while len(found) >= self._room:
                del found[next(iter(found))]
            found[offer.transfer] = gathered
        gathered, self._peers[owner] = found[offer.transfer], peer
        gathered.round, gathered.heard_at = offer.round, now
        self._say(peer, gathered)

    def _came(self, peer: bytes, owner: str, envelope: Envelope, chunk: Chunk, now: float) -> list[memoryview] | None:
        found = self._gathered.get(owner, {})
        gathered = found.get(chunk.transfer)
        if gathered is None:
            offset = self._done.get(owner, {}).get(chunk.transfer, -1)
            self._give(peer, Envelope(envelope.id, Have(transfer=chunk.transfer, offset=offset, round=chunk.round)))
            return None
        self._peers[owner] = peer
        follows = gathered.take(envelope, chunk, now)
        self.damaged += not follows
        self._say(peer, gathered, missing=not follows)
        if gathered.there < gathered.total:
            return None
        del found[chunk.transfer]
        done = self._done.setdefault(owner, {})
        done[chunk.transfer] = gathered.total
        while len(done) > MOST_DONE:
            del done[next(iter(done))]
        return gathered.message

    def _say(self, peer: bytes, gathered: Gathered, missing: bool = False) -> None:
        have = Have(transfer=gathered.transfer, offset=gathered.there, round=gathered.round, missing=missing)
        self._give(peer, Envelope(gathered.envelope.id, have))
