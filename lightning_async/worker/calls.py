"""A link's requests under way: which of them were lost, what they tell of the line, and how many bytes may keep the
other side from being heard, or come from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from lightning_async.telemetry import Ewma
from lightning_async.transport.base import Frame
from lightning_async.transport.freight import CUT_BYTES, LARGEST_BYTES, Freight
from lightning_async.transport.pace import SPAN_S
from lightning_async.wire.messages import Beat, Fetch, Pull, Push, Reason, Reply, Request

AGAIN = {Reason.PROTOCOL.value, Reason.VERSION.value, Reason.INTERNAL.value}  # not read, or perhaps done in part
MOST_REPEATS = 5  # of a request that was refused so, while nothing more of it arrives
MOST_STATE = 16  # times the parameters: what an outer optimizer may remember
Then = Callable[[Reply, tuple[Frame, ...]], None]


@dataclass
class Call:
    """A request under way."""

    id: int
    message: Request
    payload: tuple[Frame, ...]
    then: Then
    turn: int = 0  # place in the order of everything sent
    sent_at: float = 0.0
    gone_at: float = 0.0  # when all of it had left
    repeats: int = 0
    there: int = 0  # bytes that had arrived when it was last refused, of one that goes in chunks
    alone: bool = False  # nothing but questions for parameters was under way when it was sent
    frames: list[Frame] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(len(frame) for frame in self.payload)

    def lost(self, now: float, beat_s: float) -> bool:
        """Whether it was, when something that was sent after it has been answered at `now`."""
        held = self.message.wait_s if isinstance(self.message, Pull) else 0.0
        return now - self.gone_at > held + beat_s

    def bears(self, reason: str, freight: Freight) -> bool:
        """Whether it is sent again after a refusal for `reason`, which may be of a part that was altered on the way."""
        cut = freight.leaving(self.id)
        if cut is not None and cut.there > self.there:
            self.repeats, self.there = 0, cut.there
        self.repeats += 1
        return reason in AGAIN and self.repeats <= MOST_REPEATS


class Gauge:
    """What was measured of the line."""

    def __init__(self) -> None:
        self.rtt_s, self.bytes_per_s = Ewma(), Ewma()

    def note(self, call: Call, answer: Sequence[Frame], now: float) -> None:
        """`call` got its `answer`."""
        took_s = max(1e-6, now - call.sent_at)
        moved = call.bytes + sum(len(frame) for frame in answer)
        if call.alone and isinstance(call.message, Beat):
            self.rtt_s = self.rtt_s.after(took_s)
        held = isinstance(call.message, Pull) and call.message.wait_s > 0
        if moved > 100_000 and not held:
            self.bytes_per_s = self.bytes_per_s.after(moved / took_s)


def in_chunks(freight: Freight, request: int) -> bool:
    """Whether this request, or its answer, is on its way in chunks: they see to it themselves that all of them come."""
    return freight.leaving(request) is not None or any(envelope.id == request for _, envelope in freight.arriving())


def most_wanted(call: Call | None, reply_bytes: int) -> int:
    """Bytes that a frame of the answer to `call` may have, where the largest usual answer has `reply_bytes` (0: nobody
    knows). Nothing comes in chunks that was not asked for, or whose answer is small."""
    if call is None or not isinstance(call.message, Pull | Push | Fetch):
        return 0
    many = MOST_STATE if isinstance(call.message, Fetch) else 1
    return max(CUT_BYTES, many * reply_bytes) if reply_bytes else LARGEST_BYTES


def under_way(calls: Iterable[Call], freight: Freight, reply_bytes: float, bytes_per_s: float | None) -> float:
    """Bytes that must pass before the server can be heard again: what was sent, and the largest usual answer. Of what
    goes in chunks it is what has no acknowledgement, and nothing that goes whole beside takes the line more than a
    moment, in either direction; nor does what is no longer on its way, since nothing was heard of it for too long."""
    most = max(CUT_BYTES, (bytes_per_s or 0.0) * SPAN_S) if freight.takers else math.inf
    cuts = [(call, freight.leaving(call.id)) for call in calls]
    sent = sum(min(most, call.bytes) if cut is None else cut.under_way for call, cut in cuts)
    return sent + min(reply_bytes, most)
