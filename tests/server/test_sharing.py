"""Small requests: leases, shared values, beats, the report."""

from __future__ import annotations

import time

import pytest
import torch
from room import Room

from lightning_async.server import report
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack
from lightning_async.wire.messages import Reason


def test_leases_of_one_stream_never_overlap_and_cover_it() -> None:
    room = Room(seed=5).begin("a", "b")
    taken = []
    for name, count in (("a", 7), ("b", 5), ("a", 10), ("b", 8)):
        answer = room.say(name, m.Lease(stream="train", length=10, count=count))
        assert answer.seed == 5
        taken += [(number, i) for number, start, stop in answer.ranges for i in range(start, stop)]
    assert taken == [(number, i) for number in range(3) for i in range(10)]


@pytest.mark.parametrize(
    ("lease", "reason"),
    [
        (m.Lease(stream="train", length=11, count=1), Reason.DATASET),
        (m.Lease(stream="train", length=10, count=0), Reason.LIMIT),
        (m.Lease(stream="train", length=10, count=10**8), Reason.LIMIT),
        (m.Lease(stream="train", length=-1, count=1), Reason.LIMIT),
        (m.Lease(stream="tiny", length=1, count=10**7), Reason.LIMIT),
    ],
)
def test_leases_that_are_refused_soon(lease: m.Lease, reason: Reason) -> None:
    room = Room().begin("a")
    room.say("a", m.Lease(stream="train", length=10, count=3))
    start = time.thread_time()
    assert room.say("a", lease).reason == reason.value
    assert time.thread_time() - start < 0.5, "seconds of computing; usual are 50 us"
    assert room.say("a", m.Lease(stream="train", length=10, count=1)).ranges == [[0, 3, 4]]


def test_streams_are_few() -> None:
    room = Room().begin("a")
    replies = [room.say("a", m.Lease(stream=str(i), length=10, count=1)) for i in range(17)]
    assert [isinstance(reply, m.Ranges) for reply in replies] == [True] * 16 + [False]


def test_the_first_offer_wins() -> None:
    room = Room().begin("a", "b")
    assert room.say("a", m.Share(key="k")).value is None
    assert room.say("a", m.Share(key="k", value="x")).value == "x"
    assert room.say("b", m.Share(key="k", value="y")).value == "x"


def test_shared_values_are_bounded() -> None:
    room = Room().begin("a")
    assert room.say("a", m.Share(key="k", value="x" * 65_537)).reason == Reason.LIMIT.value
    for i in range(1025):
        assert room.say("a", m.Share(key=str(i), value="x")) == m.Shared(key=str(i), value="x")
    assert len(room.run.shared) == 1024
    assert room.say("a", m.Share(key="0")).value is None, "the oldest made room for the newest"


def test_a_beat_says_what_the_worker_counts_and_hears_who_is_there() -> None:
    room = Room().begin("a", "b")
    assert room.say("a", m.Beat(sent_bytes=5, received_bytes=7)) == m.Ack(version=0, live=2)
    worker = room.say("a", m.Status()).state["workers"]["a"]
    assert (worker["sent_bytes"], worker["received_bytes"]) == (5, 7)


def test_bytes_are_an_event_every_mebibyte_and_at_the_end() -> None:
    room = Room().begin("a", "b")
    for sent in (5, 2**20 - 8, 2**20, 2**20 + 100, 3 * 2**20):
        room.say("a", m.Beat(sent_bytes=sent, received_bytes=7))
    room.say("b", m.Leave(sent_bytes=3, received_bytes=4))
    told = [(event.worker, event.sent_bytes, event.received_bytes) for event in room.events(events.Traffic)]
    assert told == [("a", 2**20, 7), ("a", 3 * 2**20, 7), ("b", 3, 4)]


def test_the_report_of_a_crowd_fits_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_SHOWN", 20)
    room = Room().begin("a")
    for i in range(50):
        room.hello(f"worker {i}")
        if i >= 10:
            room.say(f"worker {i}", m.Leave())
    state = room.say("a", m.Status()).state
    assert len(state["workers"]) == 20
    assert state["hidden"] == 31
    assert {"a", *(f"worker {i}" for i in range(10))} <= set(state["workers"])
    pack(Envelope(1, m.Report(state=state)))


def test_the_report_counts() -> None:
    room = Room().begin("a")
    room.push("a", torch.ones(8), samples=3, steps=2, loss=1.5, round_s=0.5)
    room.push("a", torch.ones(8), base=9)
    state = room.say("a", m.Status()).state
    worker = state["workers"]["a"]
    assert (state["steps"], worker["samples"], worker["accepted"], worker["loss"]) == (2, 3, 1, 1.5)
    assert worker["refused"] == {"future_base": 1}
    assert state["staleness"] == {"0": 1}
