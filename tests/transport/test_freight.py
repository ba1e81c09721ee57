"""Large messages in chunks, in virtual time: what arrives is what was sent, nothing is sent twice that was there, and
whatever a peer says costs no more memory than its own bounds."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import messages_of

from lightning_async.errors import NetworkError
from lightning_async.transport import freight as module
from lightning_async.transport.base import Frame
from lightning_async.transport.cutting import digest
from lightning_async.transport.freight import CUT_BYTES, Freight
from lightning_async.transport.pace import SPAN_S, THIN_CHUNK, Pace
from lightning_async.wire.frames import Envelope, FrameError, pack, unpack
from lightning_async.wire.messages import Params, Push
from lightning_async.wire.parts import PARTS, Chunk, Drop, Have, Offer

PUSH = Push(seq=1, base=0, digest="d")
STEP_S = 0.01
Frames = Sequence[Frame]


def message(size: int, request: int = 1, seed: int = 0) -> list[Frame]:
    """A Push with two payload frames of `size` bytes in all."""
    data = random.Random(seed).randbytes(size)
    return pack(Envelope(request, PUSH, (data[: size // 3], b"", data[size // 3 :])))


class Line:
    """Two ends in virtual time. Each message is `latency_s` on its way, and takes its bytes / `bytes_per_s`.

    `fate` is asked about each message: how many times it arrives (0: lost), or what arrives in its place.
    """

    def __init__(self, bytes_per_s: float = 1e6, latency_s: float = 0.02, room: int = 1) -> None:
        self.now, self.bytes_per_s, self.latency_s = 0.0, bytes_per_s, latency_s
        self.fate: Callable[[bool, Frames], int | Frames] = lambda up, frames: 1
        self.peers = {"up": b"w1", "down": b""}
        self.owner: dict[bytes, str] = {b"w1": "w", b"w2": "w", b"x": "x"}
        self.ways: dict[bool, deque[tuple[float, bytes, Frames]]] = {True: deque(), False: deque()}
        self.free = {True: 0.0, False: 0.0}
        self.sent_bytes = {True: 0, False: 0}
        self.near = Freight(lambda peer, frames: self.put(True, b"w1", frames), clock=lambda: self.now, room=4)
        self.far = Freight(
            lambda peer, frames: self.put(False, peer, frames),
            lambda peer: self.owner.get(peer, ""),
            lambda: self.now,
            room=room,
        )
        self.near.takers, self.far.takers = {b""}, {b"w1", b"w2"}
        self.came: dict[bool, list[list[bytes]]] = {True: [], False: []}
        self.peer = b"w1"  # how the near end is called now
        self.broken = 0

    def put(self, up: bool, peer: bytes, frames: Frames) -> bool:
        if not up and peer != self.peer:
            return False
        size = sum(map(len, frames))
        self.sent_bytes[up] += size
        self.free[up] = max(self.now, self.free[up]) + size / self.bytes_per_s
        what = self.fate(up, frames)
        for arrived in [frames] * what if isinstance(what, int) else [what]:
            self.ways[up].append((self.free[up] + self.latency_s, self.peer, arrived))
        return True

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += STEP_S
            for up, way in self.ways.items():
                while way and way[0][0] <= self.now:
                    _, peer, frames = way.popleft()
                    self.take(up, peer, frames)
            self.near.tick()
            self.far.tick()

    def take(self, up: bool, peer: bytes, frames: Frames) -> None:
        end = self.far if up else self.near
        try:
            envelope = unpack([memoryview(frame) for frame in frames])
            whole = end.take(peer if up else b"", envelope) if isinstance(envelope.message, PARTS) else frames
        except FrameError:
            self.broken += 1
            return
        if whole is not None:
            self.came[up].append([bytes(frame) for frame in whole])

    def until(self, ready: Callable[[], object], limit_s: float = 600.0) -> float:
        began = self.now
        while not ready():
            assert self.now - began < limit_s, f"not within {limit_s} s"
            self.advance(STEP_S)
        return self.now - began

    def cut(self) -> None:
        """The connection breaks; the next one is another peer."""
        for way in self.ways.values():
            way.clear()
        self.free = {True: 0.0, False: 0.0}
        self.peer = b"w2" if self.peer == b"w1" else b"w1"

    def chunks(self, up: bool) -> list[Chunk]:
        """Those that are on their way."""
        found = [unpack(frames).message for _, _, frames in self.ways[up]]
        return [part for part in found if isinstance(part, Chunk)]


@pytest.mark.parametrize("size", [CUT_BYTES + 1, 1_000_000, 5_000_017])
@pytest.mark.parametrize("up", [True, False])
def test_a_large_message_arrives_as_it_was(size: int, up: bool) -> None:
    line, sent = Line(), message(size)
    assert (line.near.send(b"", sent) if up else line.far.send(b"w1", sent)) is True
    assert line.chunks(up), "it is in chunks"
    line.until(lambda: line.came[up])
    assert line.came[up] == [[bytes(frame) for frame in sent]]
    assert line.sent_bytes[up] < 1.02 * size + 2000
    line.advance(1.0)
    assert line.near.leaving(1) is line.far.leaving(1) is None
    assert list(line.far.arriving()) == list(line.near.arriving()) == []


def test_small_ones_and_those_to_who_takes_none_go_whole() -> None:
    line = Line()
    line.near.send(b"", message(CUT_BYTES))
    line.near.takers = set()
    line.near.send(b"", message(10 * CUT_BYTES))
    assert not line.chunks(True)
    line.until(lambda: len(line.came[True]) == 2)


def test_a_fast_line_is_known_after_the_first_one() -> None:
    line = Line(bytes_per_s=1e9, latency_s=0.0)
    line.near.send(b"", message(5_000_000))
    assert line.chunks(True)
    line.until(lambda: line.came[True])
    line.advance(0.1)
    line.near.send(b"", message(5_000_000, request=2))
    assert not line.chunks(True), "it takes a moment, whole"
    line.advance(module.KNOWN_S)
    line.near.send(b"", message(5_000_000, request=3))
    assert line.chunks(True), "what was measured long ago is measured again"


def test_a_slow_line_is_always_free_for_a_beat_soon() -> None:
    line, waits = Line(bytes_per_s=125_000, latency_s=0.06), []
    line.near.send(b"", message(10_000_000))
    while not line.came[True]:
        line.advance(0.5)
        waits.append(max(0.0, line.free[True] - line.now))
    assert max(waits) <= SPAN_S + 0.3
    assert line.now < 1.1 * 10_000_000 / 125_000, "and is not idle in between"


def test_a_long_fat_line_is_kept_busy() -> None:
    line = Line(bytes_per_s=10e6, latency_s=0.15)
    line.near.send(b"", message(60_000_000))
    line.until(lambda: line.came[True])
    assert line.now < 1.6 * 6.0


@pytest.mark.parametrize("up", [True, False])
def test_after_a_disconnect_only_what_is_missing_is_sent(up: bool) -> None:
    line, sent, size = Line(bytes_per_s=2e6), message(20_000_000), 20_000_000
    _ = line.near.send(b"", sent) if up else line.far.send(b"w1", sent)
    for share in (0.2, 0.5, 0.8):
        line.until(lambda share=share: line.sent_bytes[up] >= share * size)
        line.cut()
        line.near.held = True
        line.advance(5.0)
        line.near.go_on()
        if up:
            line.near.send(b"", sent)  # as a link does, which knows nothing of chunks
    line.until(lambda: line.came[up])
    assert line.came[up] == [[bytes(frame) for frame in sent]]
    assert size <= line.sent_bytes[up] <= 1.05 * size


def test_a_server_that_has_forgotten_all_gets_all_of_it_again() -> None:
    line, sent = Line(), message(1_000_000)
    line.near.send(b"", sent)
    line.advance(0.5)
    line.far._gathered.clear()
    line.until(lambda: line.came[True])
    assert line.came[True] == [[bytes(frame) for frame in sent]]


def test_a_worker_learns_that_the_rest_of_an_answer_will_not_come() -> None:
    line = Line()
    line.far.send(b"w1", message(1_000_000))
    line.advance(0.5)
    assert [envelope.id for _, envelope in line.near.arriving()] == [1]
    line.far._cuts.clear()
    line.cut()
    line.near.go_on()
    line.advance(0.5)
    assert list(line.near.arriving()) == []


def test_a_newer_answer_to_the_same_request_takes_the_older_ones_place() -> None:
    line, newer = Line(), pack(Envelope(1, Params(form="snapshot", version=2), (bytes(500_000), b"")))
    line.far.send(b"w1", message(1_000_000))
    line.advance(0.2)
    line.far.send(b"w1", newer)
    line.until(lambda: line.came[False])
    line.advance(1.0)
    assert line.came[False] == [[bytes(frame) for frame in newer]]
    assert list(line.near.arriving()) == []


def test_what_was_answered_is_not_sent_any_further() -> None:
    line = Line(bytes_per_s=125_000)
    line.near.send(b"", message(10_000_000))
    line.advance(2.0)
    line.near.cancel(1)
    line.far.forget(b"w1", 1)
    before = line.sent_bytes[True]
    line.advance(30.0)
    assert line.sent_bytes[True] == before < 500_000


@given(seed=st.integers(0, 2**32), loss=st.floats(0.0, 0.3), twice=st.floats(0.0, 0.3), altered=st.floats(0.0, 0.2))
def test_on_any_line_it_arrives_once_and_whole(seed: int, loss: float, twice: float, altered: float) -> None:
    chance = random.Random(seed)

    def fate(up: bool, frames: Frames) -> int | Frames:
        if chance.random() < altered:
            place = chance.randrange(1, len(frames))
            bad = bytearray(frames[place])
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
            return [*frames[:place], bad, *frames[place + 1 :]]
        return 0 if chance.random() < loss else 2 if chance.random() < twice else 1

    line, sent = Line(bytes_per_s=1e7), message(CUT_BYTES + chance.randrange(300_000), seed=seed)
    line.fate = fate
    line.near.send(b"", sent)
    line.until(lambda: line.came[True])
    line.advance(60.0)
    assert line.came[True] == [[bytes(frame) for frame in sent]]


def test_a_reordered_line_costs_time_and_nothing_else() -> None:
    line, sent = Line(bytes_per_s=1e7, latency_s=0.05), message(2_000_000)
    line.near.send(b"", sent)
    while not line.came[True]:
        line.advance(0.05)
        way = list(line.ways[True])
        random.Random(1).shuffle(way)
        times = sorted(time for time, _, _ in way)
        line.ways[True] = deque((time, *rest) for time, (_, *rest) in zip(times, way, strict=True))
        assert line.now < 100
    assert line.came[True] == [[bytes(frame) for frame in sent]]


# What a peer may say.


class Receiver:
    """A Freight that gets what a test says, and its answers."""

    def __init__(self, **options: object) -> None:
        self.now, self.said = 0.0, list[tuple[bytes, Envelope]]()
        self.freight = Freight(self._put, lambda peer: peer.decode(), lambda: self.now, **options)  # type: ignore[arg-type]

    def _put(self, peer: bytes, frames: Frames) -> bool:
        self.said.append((peer, unpack(frames)))
        return True

    def say(self, part: object, payload: bytes = b"", peer: bytes = b"w", request: int = 1) -> object:
        return self.freight.take(peer, Envelope(request, part, (payload,)))  # type: ignore[arg-type]

    def offer(self, peer: bytes = b"w", transfer: str = "t", **rest: object) -> None:
        header = bytes(pack(Envelope(1, PUSH, (DATA,)))[1])
        self.say(Offer(**{"transfer": transfer, "sizes": [len(DATA)], **rest}), header, peer)  # type: ignore[arg-type]

    def chunk(self, begin: int, end: int, peer: bytes = b"w", data: bytes | None = None, **rest: object) -> object:
        data = DATA[begin:end] if data is None else data
        fields = {"transfer": "t", "offset": begin, "digest": digest(data), **rest}
        return self.say(Chunk(**fields), data, peer)  # type: ignore[arg-type]

    @property
    def last(self) -> tuple[int, bool]:
        """What it says that it has, and whether something is missing."""
        part = self.said[-1][1].message
        assert isinstance(part, Have)
        return part.offset, part.missing


DATA = bytes(range(256)) * 4


@pytest.fixture
def receiver() -> Receiver:
    made = Receiver()
    made.offer()
    assert made.last == (0, False)
    return made


def test_chunks_in_order_make_the_message(receiver: Receiver) -> None:
    assert receiver.chunk(0, 500) is None
    assert receiver.last == (500, False)
    whole = receiver.chunk(500, 1024)
    assert isinstance(whole, list)
    assert unpack(whole) == Envelope(1, PUSH, (DATA,))
    assert receiver.last == (1024, False)


def test_duplicates_change_nothing(receiver: Receiver) -> None:
    for _ in range(2):
        receiver.chunk(0, 500)
        assert receiver.last == (500, False)
    assert isinstance(receiver.chunk(500, 1024), list)
    assert receiver.chunk(500, 1024) is None, "delivered once"
    assert receiver.last == (1024, False)
    receiver.offer(round=3)
    assert receiver.last == (1024, False), "its sender asks, since the last word was lost"


@pytest.mark.parametrize(("begin", "end"), [(600, 700), (400, 700)])
def test_what_does_not_follow_is_asked_for(receiver: Receiver, begin: int, end: int) -> None:
    receiver.chunk(0, 500)
    receiver.chunk(begin, end)
    assert receiver.last == (500, True)
    assert receiver.freight.damaged == 1


def test_a_wrong_digest_is_not_taken(receiver: Receiver) -> None:
    receiver.chunk(0, 500, digest=digest(b"other bytes"))
    assert receiver.last == (0, True)
    altered = bytes([1]) + DATA[1:500]
    receiver.chunk(0, 500, data=altered, digest=digest(DATA[:500]))
    assert receiver.last == (0, True)
    assert receiver.freight.damaged == 2


def test_a_strangers_chunk_is_nobodys(receiver: Receiver) -> None:
    receiver.chunk(0, 500)
    receiver.chunk(500, 1024, peer=b"other")
    assert receiver.last == (-1, False)
    assert receiver.said[-1][0] == b"other"
    said = len(receiver.said)
    assert receiver.chunk(500, 1024, peer=b"") is None
    assert len(receiver.said) == said, "nobody is not answered"
    assert isinstance(receiver.chunk(500, 1024), list)


@pytest.mark.parametrize(("begin", "end"), [(1024, 1025), (0, 1025), (-5, 0), (2**62, 2**62 + 8), (5, 5)])
def test_more_or_less_than_announced_is_no_part(receiver: Receiver, begin: int, end: int) -> None:
    with pytest.raises(FrameError, match="of a message of 1024"):
        receiver.chunk(begin, end, data=bytes(end - begin))
    assert receiver.chunk(0, 1024) is not None


@pytest.mark.parametrize(
    "sizes", [[], [0], [-1, 2000], [2**62], [5001], [2**40, -(2**40) + 5], [5000, 5000, 1], [1] * 10_001]
)
def test_hostile_sizes_are_refused_before_anything_is_kept(sizes: list[int]) -> None:
    receiver = Receiver()
    receiver.freight.largest_bytes = 5000
    with pytest.raises(FrameError, match="5000 a frame"):
        receiver.offer(sizes=sizes)
    assert list(receiver.freight.arriving()) == []


@pytest.mark.parametrize("header", [b"", b"LA", bytes(100), bytes(pack(Envelope(2, PUSH))[1])])
def test_an_offer_of_no_message_is_refused(header: bytes) -> None:
    receiver = Receiver()
    with pytest.raises(FrameError):
        receiver.say(Offer(transfer="t", sizes=[10]), header)
    with pytest.raises(FrameError):
        receiver.say(Offer(transfer="t", sizes=[10]), bytes(pack(Envelope(1, Have(transfer="t", offset=0)))[1]))


def test_what_is_announced_takes_no_memory() -> None:
    receiver = Receiver()
    tracemalloc.start()
    try:
        for number in range(100):
            receiver.offer(peer=b"w%d" % number, sizes=[2**31])
        assert tracemalloc.get_traced_memory()[0] < 3_000_000
    finally:
        tracemalloc.stop()


def test_one_owner_has_one_message_under_way() -> None:
    receiver = Receiver()
    for number in range(50):
        receiver.offer(transfer=f"t{number}")
    assert len(list(receiver.freight.arriving())) == 1
    receiver.offer(peer=b"other")
    assert len(list(receiver.freight.arriving())) == 2, "another's are not touched"


def test_a_beginning_is_kept_for_its_time(receiver: Receiver) -> None:
    receiver.chunk(0, 500)
    receiver.now += 299.0
    receiver.freight.tick()
    receiver.offer(round=1)
    assert receiver.last == (500, False)
    receiver.now += 301.0
    receiver.freight.tick()
    receiver.chunk(500, 1024)
    assert receiver.last == (-1, False)


def test_a_rest_is_kept_for_its_time() -> None:
    line = Line()
    line.far.send(b"w1", message(1_000_000))
    line.fate = lambda up, frames: 0
    line.advance(line.far.keep_s + 30.0)
    assert line.far.leaving(1) is None


@pytest.mark.parametrize("offset", [-2, 2**62, 1_000_001])
def test_nobody_has_more_than_there_is(offset: int) -> None:
    line = Line()
    line.far.send(b"w1", message(1_000_000))
    transfer = line.far.leaving(1).transfer
    with pytest.raises(FrameError, match="of 1000000 bytes"):
        line.far.take(b"w1", Envelope(1, Have(transfer=transfer, offset=offset)))


def test_the_rest_of_an_answer_is_its_owners() -> None:
    line = Line()
    line.far.send(b"w1", message(1_000_000))
    transfer, before = line.far.leaving(1).transfer, line.sent_bytes[False]
    line.peer = b"x"
    line.far.take(b"x", Envelope(1, Have(transfer=transfer, offset=0, missing=True)))
    assert isinstance(unpack(line.ways[False][-1][2]).message, Drop)
    assert line.sent_bytes[False] - before < 300
    assert line.far.leaving(1).peer == b"w1"


def test_a_message_that_is_begun_anew_does_not_wait_for_its_earlier_rounds() -> None:
    """Its sender had given it up, and its receiver had not heard of that."""
    line, sent = Line(), message(3_000_000)
    line.near.send(b"", sent)
    line.until(lambda: line.sent_bytes[True] > 500_000)
    for _ in range(30):
        line.near.send(b"", sent)
        line.advance(0.1)
    line.near.cancel(1)
    line.near.send(b"", sent)
    assert line.until(lambda: line.came[True]) < 6.0
    assert line.came[True] == [[bytes(frame) for frame in sent]]


def test_what_its_receiver_has_no_use_for_is_not_sent_to_the_end() -> None:
    line, answered = Line(), list[int]()
    line.near._wanted = lambda request: 0 if request in answered else math.inf
    line.far.send(b"w1", message(3_000_000))
    line.until(lambda: line.sent_bytes[False] > 300_000)
    line.near.forget(b"", 1)
    answered.append(1)  # by another answer, which came whole
    line.advance(1.0)
    before = line.sent_bytes[False]
    line.advance(60.0)
    assert line.sent_bytes[False] == before < 1_000_000
    assert line.far.leaving(1) is None
    assert not line.came[False]


def test_what_is_dropped_is_its_owners() -> None:
    line = Line()
    line.far.send(b"w1", message(1_000_000))
    drop = Envelope(1, Drop(transfer=line.far.leaving(1).transfer))
    line.far.take(b"x", drop)
    assert line.far.leaving(1) is not None
    line.far.take(b"w1", drop)
    assert line.far.leaving(1) is None


def test_nothing_is_kept_of_who_has_gone() -> None:
    line = Line()
    line.near.send(b"", message(3_000_000))
    line.far.send(b"w1", message(1_000_000, request=2))
    line.advance(0.5)
    line.far.part_with("w")
    assert list(line.far.arriving()) == []
    assert line.far.leaving(2) is None
    line.far.part_with("w")


def test_a_full_queue_is_tried_again_later() -> None:
    line, full = Line(), [True]
    put = line.near._send

    def refusing(peer: bytes, frames: Frames) -> bool:
        if full[0]:
            raise NetworkError("its queue is full")
        return put(peer, frames)

    line.near._send = refusing
    line.near.send(b"", message(1_000_000))
    line.advance(1.0)
    full[0] = False
    line.until(lambda: line.came[True])


@given(st.data())
def test_whatever_parts_come_the_others_are_served(data: st.DataObject) -> None:
    receiver = Receiver()
    receiver.offer()
    receiver.chunk(0, 500)
    for _ in range(data.draw(st.integers(1, 8))):
        part = data.draw(st.one_of([messages_of(kind) for kind in PARTS]))
        part = replace(part, transfer=data.draw(st.sampled_from(["t", part.transfer])))
        payload, request = data.draw(st.binary(max_size=50)), data.draw(st.integers(1, 3))
        try:
            receiver.say(part, payload, b"hostile", request)
            receiver.freight.take(b"hostile", Envelope(request, part, ()))
        except FrameError:
            pass
    assert isinstance(receiver.chunk(500, 1024), list)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(0.0, 100.0)), max_size=30), st.integers(1, 10**9))
def test_a_pace_is_always_within_its_bounds(heard: list[tuple[int, float]], total: int) -> None:
    pace, now, upto = Pace(total, 0.0), 0.0, 0
    for more, later in heard:
        now, upto = now + later, upto + more
        pace.sent(upto, now - later / 2)
        pace.arrived(upto, now)
        assert THIN_CHUNK <= pace.chunk <= pace.window
        most_s = max(SPAN_S, 2 * pace.rtt_s)
        assert 2 * THIN_CHUNK <= pace.window <= max(2 * THIN_CHUNK, 2 * most_s * (pace.bytes_per_s or math.inf))
