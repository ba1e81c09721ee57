"""A worker and its server with updates and parameters in chunks, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from town import SLOW, Town, raw

from lightning_async.config import RunConfig
from lightning_async.server.actions import Received
from lightning_async.transport.faults import FaultyConnection, Script
from lightning_async.transport.freight import CUT_BYTES
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, unpack
from lightning_async.wire.parts import PARTS, Chunk
from lightning_async.worker.calls import Gauge, under_way
from lightning_async.worker.patience import run_patience_s, silence_s


@pytest.fixture
def town(town: Callable[..., Town]) -> Callable[..., Town]:
    return partial(town, first=watch)


def watch(place: Town) -> None:
    """Count the chunks that reach the server, and what reaches its coordinator."""
    place.chunks, place.events, place.chunk_bytes = [], [], 0
    take, handle = place.service._take, place.coordinator.handle

    def taken(peer: bytes, frames: Any) -> None:
        envelope = unpack(frames)
        if isinstance(envelope.message, Chunk):
            place.chunks.append(envelope.message)
            place.chunk_bytes += len(envelope.payload[0])
        take(peer, frames)

    def handled(event: Any, now: float) -> Any:
        if isinstance(event, Received):
            place.events.append(event.envelope.message)
        return handle(event, now)

    place.service._take, place.coordinator.handle = taken, handled


def other(place: Town) -> m.Receipt:
    """Another worker's update, which makes a version: what the coordinator answers."""
    coordinator, peer = place.coordinator, b"other"
    member = coordinator.run.members.named("o")
    if member is None:
        hello = m.Hello(worker="o", instance="1", tensors=place.tensors, digest=place.digest)
        coordinator.handle(Received(peer, Envelope(1, hello)), place.now)
        member = coordinator.run.members.named("o")
    push = m.Push(seq=member.last_seq + 1, base=coordinator.run.version, digest=place.digest)
    coordinator.handle(Received(peer, Envelope(1, push, (raw(torch.ones(place.d)), b""))), place.now)
    return member.receipts[push.seq]


def test_an_update_in_chunks_is_one_update_and_no_chunk_is_an_event(town: Callable[..., Town]) -> None:
    place = town(SLOW)
    receipts = place.push(1)
    place.until(lambda: receipts, 60.0)
    assert receipts[0].accepted
    assert len(place.chunks) > 10
    assert place.parameters[:2] == [-1.0, -1.0]
    assert not [message for message in place.events if isinstance(message, PARTS)]


def test_a_report_tells_how_far_transfers_are(town: Callable[..., Town]) -> None:
    place = town(SLOW)

    def told() -> dict[str, Any]:
        reports: list[m.Reply] = []
        place.link.request(m.Status(), lambda reply, _: reports.append(reply))
        place.until(lambda: reports, 60.0)
        assert isinstance(reports[0], m.Report)
        return reports[0].state.get("transfers", {})

    assert told() == {}
    receipts = place.push(1)
    place.until(lambda: len(place.chunks) > 2, 60.0)
    up = told()["w"]["up"]
    assert 0 < up["bytes"] < up["total"] == 4 * place.d
    place.until(lambda: receipts, 60.0)
    assert told() == {}
    pulled: list[m.Reply] = []
    place.link.request(m.Pull(), lambda reply, _: pulled.append(reply))
    place.until(lambda: place.link.arriving, 60.0)
    place.until(lambda: told().get("w", {}).get("down", {}).get("bytes"), 60.0)
    down = told()["w"]["down"]
    assert 0 < down["bytes"] < down["total"] >= 4 * place.d
    place.until(lambda: pulled, 60.0)


def test_beats_are_answered_during_a_transfer_and_nobody_dials_anew(town: Callable[..., Town]) -> None:
    place = town(Script().delay(1.5))
    place.acks.clear()
    receipts = place.push(1)
    took = place.until(lambda: receipts, 200.0)
    assert took > 10.0
    assert len(place.acks) > took / 8
    assert len(place.lines) == 1
    assert place.coordinator.run.members.named("w").alive


def test_an_update_goes_on_where_a_disconnect_broke_it(town: Callable[..., Town]) -> None:
    place = town(SLOW)
    place.chunks.clear()
    place.chunk_bytes, receipts = 0, place.push(1)
    place.until(lambda: len(place.chunks) > 2, 60.0)
    under = under_way(place.link._calls.values(), place.link._freight, 0, None)
    assert under < 500_000, "of what is in chunks only these can keep the server from being heard"
    break_line(place)
    place.until(lambda: receipts, 120.0)
    assert receipts[0].accepted
    assert len(place.lines) == 2
    assert place.coordinator.run.members.named("w").accepted == 1
    assert 4 * place.d <= place.chunk_bytes <= 4 * place.d + under, "what was under way is sent again, and no more"


def break_line(place: Town) -> None:
    """Nothing passes the newest connection any more."""
    cut = Script().drop(1.0).faults
    for lane in (place.lines[-1]._line._up, place.lines[-1]._line._down):
        never = type("Never", (), {"random": staticmethod(lambda: 0.0)})()
        lane._faults = [(fault, never) for fault in cut]


def test_parameters_go_on_where_a_disconnect_broke_them_also_when_there_are_newer_ones(
    town: Callable[..., Town],
) -> None:
    place = town(SLOW)
    answers: list[tuple[m.Reply, Any]] = []
    place.link.request(m.Pull(), lambda reply, payload: answers.append((reply, payload)))
    place.until(lambda: place.link.arriving, 60.0)
    place.until(lambda: gathered(place) > 300_000, 60.0)
    break_line(place)
    other(place)
    assert place.coordinator.run.version == 1
    asked = [message for message in place.events if isinstance(message, m.Pull)]
    place.until(lambda: answers, 120.0)
    reply, payload = answers[0]
    assert isinstance(reply, m.Params)
    assert reply.version == 0, "the rest of what had begun to come"
    assert bytes(payload[0]) == bytes(4 * place.d)
    assert len(place.lines) == 2
    assert [message for message in place.events if isinstance(message, m.Pull)] == asked, "not asked again"


def gathered(place: Town) -> int:
    return sum(each.there for found in place.link._freight._gathered.values() for each in found.values())


def test_an_update_whose_base_gets_too_old_is_cancelled_in_flight(town: Callable[..., Town]) -> None:
    place = town(SLOW, staleness="fixed(bound=1)")
    place.chunks.clear()
    before, receipts = place.link.traffic().sent_bytes, place.push(1)
    place.until(lambda: place.chunks, 60.0)
    assert other(place).accepted
    place.advance(0.3)
    assert not receipts, "one version is allowed"
    assert other(place).accepted
    place.until(lambda: receipts, 5.0)
    assert [(receipt.accepted, receipt.reason) for receipt in receipts] == [(False, "stale")]
    place.advance(1.0)  # what was on its way arrives
    sent = place.link.traffic().sent_bytes
    place.advance(20.0)
    assert place.link.traffic().sent_bytes - sent < 5000, "nothing but beats"
    assert sent - before < 0.7 * 4 * place.d, "not all of it was sent"
    again = place.push(2, base=2)
    place.until(lambda: again, 60.0)
    assert again[0].accepted, "its number was used by the refusal"


def test_an_update_that_the_server_had_is_not_sent_again(town: Callable[..., Town]) -> None:
    """The receipt was lost with its connection: asking again costs an offer."""
    place = town(SLOW)
    receipts = place.push(1)
    member = place.coordinator.run.members.named("w")
    place.until(lambda: member.accepted, 60.0)
    break_line(place)
    place.chunks.clear()
    place.until(lambda: receipts, 120.0)
    assert receipts[0].accepted
    assert len(place.chunks) <= 8, "those that were sent before the answer"
    assert member.accepted == 1


def test_a_server_without_state_gets_all_of_the_update_again(town: Callable[..., Town]) -> None:
    place = town(SLOW)
    place.chunks.clear()
    receipts = place.push(1)
    place.until(lambda: place.chunks and place.chunks[-1].offset > 500_000, 60.0)
    place.service._freight._gathered.clear()
    place.until(lambda: receipts, 120.0)
    assert receipts[0].accepted


def test_chunks_of_nobody_are_refused_and_its_sender_joins_again(town: Callable[..., Town]) -> None:
    place = town(SLOW, beat_s=15.0)
    place.chunks.clear()
    receipts = place.push(1)
    place.until(lambda: place.chunks, 60.0)
    place.coordinator.run.members.leave(place.coordinator.run.members.named("w"))
    place.link._next_beat = place.now + 100.0
    place.until(lambda: len(place.welcomes) == 2, 5.0)  # and neither a beat nor silence has told it
    place.until(lambda: receipts, 60.0)
    assert len(place.welcomes) == 2
    assert receipts[0].accepted
    assert len([message for message in place.events if isinstance(message, m.Push)]) == 1, "no event without a member"


def test_what_is_under_way_leaves_before_the_goodbye(town: Callable[..., Town]) -> None:
    place = town()
    place.link._freight._speeds.clear()  # no time has passed here, so the line seems endlessly fast
    place.push(1)
    assert place.link._freight.leaving(place.link._next_id) is not None
    now = [place.now]

    def clock() -> float:
        now[0] += 0.001
        place.now = max(place.now, now[0])
        for _ in range(4):
            place.service.wake()
            place.service.turn()
        return now[0]

    place.link._clock = place.link._freight._clock = clock
    place.link.close("done", 20.0)
    assert place.coordinator.run.members.named("w").accepted == 1


def test_a_connection_that_takes_messages_whole_gets_them_whole(
    town: Callable[..., Town], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FaultyConnection, "cuts", False)
    place = town(SLOW)
    assert not place.welcomes[0].chunks
    receipts = place.push(1)
    place.until(lambda: receipts, 60.0)
    assert not place.chunks


def test_one_knob_says_how_long_silence_is(town: Callable[..., Town]) -> None:
    place = town()
    break_line(place)
    began, receipts = place.now, place.push(1)
    place.until(lambda: receipts, 300.0)
    assert place.config.patience_s / 2 <= place.now - began < place.config.patience_s
    assert len(place.lines) == 2


def test_a_line_that_dies_under_its_first_update_is_dialled_anew_by_what_that_has_measured(
    town: Callable[..., Town],
) -> None:
    """Not by the slowest line that there may be, on which as much would take minutes."""
    place = town(Script().delay(0.05))
    place.link.gauge = Gauge()  # as of a worker that did not begin the run
    place.link._freight._speeds.clear()
    place.link._reply_bytes = 10**8
    receipts = place.push(1)
    calls, freight = place.link._calls, place.link._freight
    place.until(lambda: freight.speed(b"") and under_way(calls.values(), freight, 0, None) > 200_000, 10.0)
    break_line(place)
    began = place.now
    place.until(lambda: len(place.lines) == 2, 300.0)
    assert place.now - began < place.config.patience_s
    place.until(lambda: receipts, 60.0)


def test_what_was_given_up_keeps_no_line_from_being_dialled_anew(town: Callable[..., Town]) -> None:
    """Nothing was heard of its chunks for as long as they are kept."""
    place = town()
    place.link._freight._speeds.clear()
    place.push(1)
    call = place.link._calls[place.link._next_id]
    assert place.link._freight.leaving(call.id) is not None
    place.link._freight.cancel(call.id)
    assert under_way([call], place.link._freight, 10**8, None) == 2 * CUT_BYTES
    assert under_way([call], place.link._freight, 10**8, 1e6) == 2e6
    place.link._freight.takers.clear()
    assert under_way([call], place.link._freight, 10**8, 1e6) == call.bytes + 10**8, "the line takes no chunks"


def test_silence_is_longer_on_a_line_that_has_more_to_carry() -> None:
    assert silence_s(30.0, 0, None, None, dialled=0) == 15.0
    assert silence_s(60.0, 0, None, None, dialled=0) == 30.0
    assert silence_s(30.0, 1e6, 1e5, 0.5, dialled=0) == 15.0 + 30.0 + 2.0
    assert [silence_s(30.0, 0, None, None, dialled=n) for n in (1, 2, 3, 99)] == [30.0, 60.0, 120.0, 960.0]
    assert run_patience_s({"patience_s": 7}) == 7.0
    assert run_patience_s({"patience_s": "soon"}) == run_patience_s({}) == RunConfig.patience_s
