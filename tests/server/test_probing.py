"""Answers to Probe: what they bring, what they cost whom, and that a run and its journal do not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_async.config import RunConfig
from lightning_async.layout import read_manifest
from lightning_async.persistence import open_journal
from lightning_async.server import probing, report
from lightning_async.server.probing import ALL_BYTES, ALL_BYTES_S, MOST_BYTES, MOST_PEERS, OWN_BYTES, Probes
from lightning_async.server.recorder import Recorder
from lightning_async.server.recovery import recorded
from lightning_async.server.service import Service
from lightning_async.transport import connect, listen
from lightning_async.transport.base import Connection
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, unpack

TENSORS = [["w", [2], "float32", "parameter"]]
OTHERS: list[Any] = [["w", [3], "float32", "parameter"]]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def probes(clock: Clock) -> Probes:
    return Probes(lambda: read_manifest(TENSORS), clock, lambda: 1000.0 + clock.now)


def asked(probes: Probes, who: bytes = b"a", sizes: tuple[int, ...] = (), **fields: Any) -> tuple[m.Reply, int]:
    """The reply, and the bytes that come with it."""
    reply, payload = probes.answer(who, m.Probe(**fields), sizes)
    return reply, sum(map(len, payload))


def test_bytes_for_bytes_and_the_time(probes: Probes, clock: Clock) -> None:
    clock.now = 5.0
    reply, size = asked(probes, down_bytes=1000)
    assert isinstance(reply, m.Echo)
    assert (reply.received_at, reply.answered_at, size) == (1005.0, 1005.0, 1000)
    assert {"python", "torch", "lightning_async", "free_bytes"} <= reply.host.keys()
    assert asked(probes)[1] == 0
    assert asked(probes, down_bytes=MOST_BYTES)[1] == MOST_BYTES


def test_a_model_is_compared(probes: Probes) -> None:
    same, other = asked(probes, tensors=TENSORS)[0], asked(probes, tensors=OTHERS)[0]
    assert isinstance(same, m.Echo)
    assert isinstance(other, m.Echo)
    assert same.layout == ""
    assert "(3,)" in other.layout
    wrong = asked(probes, tensors=["x", 5])[0]
    assert isinstance(wrong, m.Refused)
    assert wrong.reason == "layout"
    unknown = asked(Probes(lambda: None), tensors=OTHERS)[0]
    assert isinstance(unknown, m.Echo)
    assert unknown.layout == ""


@pytest.mark.parametrize(
    ("sizes", "down"),
    [((MOST_BYTES + 1,), 0), ((), MOST_BYTES + 1), ((), -1), ((1, 1), 0), ((), 2**62), ((), -(2**63))],
)
def test_what_is_too_much_is_refused(probes: Probes, sizes: tuple[int, ...], down: int) -> None:
    reply, size = asked(probes, sizes=sizes, down_bytes=down)
    assert isinstance(reply, m.Refused)
    assert (reply.reason, size) == ("limit", 0)


def until_refused(probes: Probes, who: bytes, most: int = 1000) -> int:
    """Bytes that `who` gets before it is refused."""
    got = 0
    for _ in range(most):
        reply, size = asked(probes, who, down_bytes=MOST_BYTES)
        if isinstance(reply, m.Refused):
            assert reply.reason == "limit"
            return got
        got += size
    raise AssertionError("never refused")


def test_a_peer_gets_its_share_and_then_ever_so_little(probes: Probes, clock: Clock) -> None:
    assert OWN_BYTES - 2 * MOST_BYTES < until_refused(probes, b"a") <= OWN_BYTES
    assert until_refused(probes, b"b") > MOST_BYTES, "another peer has its own"
    clock.now += 10.0
    assert until_refused(probes, b"a") <= 3 * MOST_BYTES


def test_who_comes_again_and_again_gets_no_more_than_all(probes: Probes, clock: Clock) -> None:
    names = (str(number).encode() for number in range(3 * MOST_PEERS))
    assert sum(until_refused(probes, name) for name in names) <= ALL_BYTES
    clock.now += 4.0
    assert sum(until_refused(probes, str(number).encode()) for number in range(10)) <= 4 * ALL_BYTES_S + MOST_BYTES
    assert len(probes._own) == MOST_PEERS


def test_many_tensors_cost_too(probes: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "OWN_BYTES", 2.0**20)
    many = [[f"w{number}", [1], "float32", "parameter"] for number in range(3_000)]
    asked_for = 0
    while not isinstance(asked(probes, tensors=many)[0], m.Refused):
        asked_for += 1
        assert asked_for < 100
    assert asked_for == 2**20 // (4096 + 64 * 3_000)


def exchanged(service: Service, line: Connection, message: m.Request, *payload: bytes) -> Envelope:
    line.send(pack(Envelope(1, message, payload)))
    frames = None
    while frames is None:
        service.turn()
        frames = line.receive(0.05)
    return unpack(frames)


def test_the_run_and_its_journal_do_not_notice(tmp_path: Path) -> None:
    recorder: Recorder = recorded(RunConfig(), "run", tmp_path, 0.0)
    listener = listen("tcp://127.0.0.1:0")
    service = Service(recorder.coordinator, listener, recorder=recorder)
    line = connect(listener.address)
    run = recorder.coordinator.run
    recorder.settle()
    before, written = report.state(run, 0.0), recorder.submitted
    try:
        for number in range(5):
            echo = exchanged(service, line, m.Probe(down_bytes=number, tensors=TENSORS), bytes(number))
            assert isinstance(echo.message, m.Echo)
            assert sum(map(len, echo.payload)) == number
        assert isinstance(exchanged(service, line, m.Probe(down_bytes=-1)).message, m.Refused)
        recorder.settle()
        assert recorder.submitted == recorder.durable == written
        assert report.state(run, 0.0) == before
    finally:
        line.close()
        service.close()
    journal = open_journal(tmp_path, writing=False)
    try:
        assert [record.kind for record in journal.read(0)] == ["start"]
    finally:
        journal.close()
