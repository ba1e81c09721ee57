"""Chunks that are altered, not asked for or of somebody who has gone, between a link and a service in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from town import SLOW, Town

from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, unpack
from lightning_async.wire.parts import Chunk, Drop, Offer
from lightning_async.worker.calls import MOST_STATE, Call, most_wanted


@pytest.mark.parametrize("every", [3, 5])
def test_chunks_that_are_altered_again_and_again_cost_time_and_no_update(town: Callable[..., Town], every: int) -> None:
    """Each is refused, and what arrives between two of them shows that the line is not to blame for ever."""
    place = town(SLOW)
    place.altering[0]._every = every
    receipts = place.push(1)
    place.until(lambda: receipts, 600.0)
    assert place.altering[0].fired > 6
    assert isinstance(receipts[0], m.Receipt), receipts
    assert receipts[0].accepted


def offer(place: Town, request: int, size: int) -> list[m.Message]:
    """What the worker says to a server that offers an answer of so many bytes to its request."""
    said: list[m.Message] = []
    send = place.link._freight._send
    place.link._freight._send = lambda peer, frames: (said.append(unpack(frames).message), send(peer, frames))[1]
    header = bytes(pack(Envelope(request, m.Params(form="snapshot", version=0), (b"",)))[1])
    part = pack(Envelope(request, Offer(transfer="t", sizes=[size]), (header,)))
    place.listener.send(place.coordinator.run.members.named("w").peer, part)
    place.link.pump(0.0)
    return said


def test_an_answer_that_nobody_asked_for_is_not_gathered(town: Callable[..., Town]) -> None:
    place = town()
    said = offer(place, 12_345, 300_000)
    assert said == [Drop(transfer="t")]
    assert not place.link.arriving


def test_an_answer_larger_than_the_model_is_not_gathered(town: Callable[..., Town]) -> None:
    place = town()
    place.link._reply_bytes = 4 * place.d
    place.service = None  # another one answers here
    place.ask(m.Pull(wait_s=5.0))
    request = place.link._next_id
    assert not [part for part in offer(place, request, 4 * place.d + 1) if not isinstance(part, m.Beat)]
    assert place.link.damaged == 1
    assert not place.link.arriving
    offer(place, request, 4 * place.d)
    assert place.link.arriving


@pytest.mark.parametrize(
    ("message", "most"),
    [(m.Pull(), 10**6), (m.Push(seq=1, base=0, digest=""), 10**6), (m.Fetch(), MOST_STATE * 10**6), (m.Beat(), 0)],
)
def test_how_large_an_answer_may_be_follows_from_its_request(message: m.Request, most: int) -> None:
    call = Call(1, message, (), lambda reply, payload: None)
    assert most_wanted(call, 10**6) == most
    assert most_wanted(None, 10**6) == 0


@pytest.mark.parametrize("says", [m.Leave(), m.Hello(worker="another", instance="2", role="observer")])
def test_who_leaves_or_takes_another_name_leaves_nothing_half_done(town: Callable[..., Town], says: m.Request) -> None:
    """Else one connection could fill the memory under ever new names."""
    place = town(SLOW)
    place.push(1)
    place.until(lambda: list(place.service._freight.arriving()), 60.0)
    peer = place.coordinator.run.members.named("w").peer
    place.service._take(peer, [memoryview(frame) for frame in pack(Envelope(99, says))])
    assert list(place.service._freight.arriving()) == []


def test_an_answer_that_came_otherwise_is_not_fetched_again(town: Callable[..., Town]) -> None:
    """It was asked for twice, and one of the answers was small enough to overtake the other."""
    place = town(SLOW)
    answers = place.ask(m.Pull())
    place.until(lambda: place.link.arriving, 60.0)
    request = place.link._next_id
    whole = pack(Envelope(request, m.Params(form="unchanged", version=0)))
    place.link._take([memoryview(frame) for frame in whole])
    assert len(answers) == 1
    place.advance(5.0)
    before = place.link.traffic().received_bytes
    place.advance(30.0)
    assert place.link.traffic().received_bytes - before < 5000, "nothing but beats"
    assert not [cut for cuts in place.service._freight._cuts.values() for cut in cuts]


def test_a_chunk_of_nothing_begins_nothing(town: Callable[..., Town]) -> None:
    place = town()
    chunk = pack(Envelope(7, Chunk(transfer="none", offset=0, digest="x"), (b"data",)))
    place.listener.send(place.coordinator.run.members.named("w").peer, chunk)
    place.advance(1.0)
    assert not place.link.arriving
