"""The courier's thread against a real server in a thread, over bad networks: exactly once, in order, never silent."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from eventually import ENOUGH_S, eventually
from town import DIGEST, TENSORS, Altering, D, Losing, raw

from lightning_async.config import RunConfig
from lightning_async.errors import NetworkError, RefusedError, UnreachableError
from lightning_async.layout import read_manifest
from lightning_async.server import ServerThread, service
from lightning_async.transport import memory
from lightning_async.transport.base import Connection
from lightning_async.transport.faults import FaultyConnection, Script, connection_with
from lightning_async.wire import messages as m
from lightning_async.worker.courier import Courier
from lightning_async.worker.link import Link
from lightning_async.worker.parcels import Forgotten, Outcome, Update, check_run
from lightning_async.worker.replica import Arrival
from lightning_async.worker.world import SLICE_S

UPDATES = 40
PATIENCE_S = 2 * ENOUGH_S  # of either side with a silent other, where it shall not run out
QUICK = RunConfig(beat_s=0.05, patience_s=PATIENCE_S)
BAD = Script(seed=12).drop(0.1).duplicate(0.1).delay(0.0, 0.05, p=0.3).reorder(0.1)


class Station:
    """A courier, its server, and what has come."""

    def __init__(self, script: Script, config: RunConfig = QUICK, alter_every: int = 10**9) -> None:
        self.server = ServerThread(config, "memory://")
        self.lines: list[FaultyConnection] = []
        self.altering: list[Altering] = []
        self.losing: list[Losing] = []
        self.outcomes: list[Outcome | Forgotten] = []
        self.arrivals: list[Arrival] = []
        self._alter_every = alter_every
        self._script = script
        hello = m.Hello(worker="w", instance="1", tensors=TENSORS, digest=DIGEST)
        self.courier = Courier(
            lambda welcomed, heard: Link(
                self.dial,
                hello,
                welcomed,
                heard,
                self.server.address,
                patience_s=PATIENCE_S,
                rejoin_patience_s=PATIENCE_S,
            ),
            read_manifest(TENSORS),
        )
        self.courier.start()

    def dial(self) -> Connection:
        self.losing.append(Losing(memory.connect(self.server.address, queue=5000)))
        self.altering.append(Altering(self.losing[-1], self._alter_every))
        self.lines.append(connection_with(Script() if self.lines else self._script, self.altering[-1]))
        return self.lines[-1]

    def begin(self) -> None:
        self.wait(lambda: self.courier.welcome is not None)
        ticket = self.courier.ask(m.Init(digest=DIGEST), (raw(torch.zeros(D)), b""))
        self.wait(ticket.done.is_set)
        self.courier.pull()
        self.wait(lambda: self.courier.idle)
        self.collect()

    def wait(self, ready: Callable[[], bool]) -> None:
        assert self.courier.wait(ready, lambda: False, ENOUGH_S), f"not within {ENOUGH_S} s"

    def collect(self) -> None:
        outcomes, arrivals = self.courier.collect()
        self.outcomes += outcomes
        self.arrivals += arrivals

    def exchange(self, seq: int, wait_newer: bool = False) -> None:
        base = self.arrivals[-1].version if self.arrivals else 0
        push = m.Push(seq=seq, base=base, digest=DIGEST)
        self.courier.exchange(Update(push, torch.full((D,), float(seq)), torch.empty(0)), wait_newer)
        self.wait(lambda: self.courier.idle)
        self.collect()

    def member(self) -> Any:
        return self.server.coordinator.run.members.named("w")

    def close(self) -> None:
        with contextlib.suppress(NetworkError):
            self.courier.close("done", 0.2)
        self.server.close()


@pytest.fixture
def station(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Station]]:
    monkeypatch.setattr(service, "GOODBYE_S", 0.2)  # for servers that wait for workers which were made to fail
    with contextlib.ExitStack() as stack:

        def made(*args: Any, **options: Any) -> Station:
            return stack.enter_context(contextlib.closing(Station(*args, **options)))

        yield made


@pytest.mark.parametrize("download", ["none", "int8"])
def test_every_update_counts_exactly_once_and_every_version_arrives_whole(
    station: Callable[..., Station], download: str
) -> None:
    config = replace(QUICK, download_compression=download)
    place = station(BAD, config, alter_every=9)
    place.begin()
    for seq in range(1, UPDATES + 1):
        place.exchange(seq)
    place.courier.pull()  # the last one's Pull may have overtaken it
    place.wait(lambda: place.courier.idle)
    place.collect()
    assert set(place.lines[0].fired) == {"drop", "duplicate", "delay", "reorder"}
    assert place.altering[0].fired > 3
    assert place.outcomes == [Outcome(seq, True, seq - 1) for seq in range(1, UPDATES + 1)]
    assert place.member().accepted == UPDATES
    assert place.server.coordinator.run.version == UPDATES
    versions = [arrival.version for arrival in place.arrivals]
    assert versions == sorted(set(versions))
    assert versions[-1] == UPDATES
    assert torch.equal(held(place.arrivals), place.server.coordinator.run.store.published)


def held(arrivals: list[Arrival]) -> torch.Tensor:
    """What a worker holds after these: snapshots and chains of deltas."""
    held = torch.empty(0)
    for arrival in arrivals:
        held = arrival.parameters.clone() if arrival.parameters is not None else held
        for delta in arrival.deltas:
            held = held + delta
    return held


def test_a_lost_receipt_is_asked_for_again_and_is_the_same(station: Callable[..., Station]) -> None:
    place = station(Script())
    place.begin()
    place.losing[0].lose = 2
    place.exchange(1)
    assert place.losing[0].lose == 0, "it came a third time"
    assert place.outcomes == [Outcome(1, True, 0)]
    assert place.member().accepted == 1


def test_a_worker_that_was_forgotten_joins_again_and_goes_on(station: Callable[..., Station]) -> None:
    place = station(Script())
    place.begin()
    place.exchange(1)
    place.server.coordinator.run.members.leave(place.member())
    place.exchange(2)
    assert [outcome.accepted for outcome in place.outcomes] == [True, True]
    assert place.member().accepted == 2


def test_a_server_without_the_run_is_an_error_that_says_what_to_do(station: Callable[..., Station]) -> None:
    place = station(Script())
    place.begin()
    place.exchange(1)
    address = place.server.address
    place.server.close("moved")
    place.server = ServerThread(QUICK, address)
    with pytest.raises(RefusedError, match=r"started anew without the state of run 'local'.* Start the workers again"):
        place.exchange(2)


FIRST = m.Welcome(run="r", run_id="1" * 32, version=3, last_seq=0, config={}, initialise=False, workers=1, beat_s=1.0)
OTHER = "2" * 32


@pytest.mark.parametrize(
    ("before", "again", "have", "text"),
    [
        ({}, {}, 5, ""),
        ({}, {"version": 1}, 5, ""),  # restored from an older snapshot
        ({}, {"run": "renamed"}, 5, ""),
        ({}, {"run_id": OTHER}, 5, r"got run 'r' \(22222222\), expected the one that .* joined \(11111111\)"),
        ({}, {"run_id": OTHER, "version": 7}, 5, r"got run 'r' \(22222222\)"),
        ({}, {"version": -1}, 5, "got it without parameters"),
        ({"version": -1}, {"version": -1}, 0, "got it without parameters"),
        ({"version": -1}, {"version": -1, "run_id": OTHER}, -1, ""),  # neither had begun
        ({"version": -1}, {"version": 4, "run_id": OTHER}, -1, ""),
        ({"version": -1}, {"version": -1, "run_id": OTHER, "config": {"local_steps": 2}}, -1, r"got run 'r'"),
    ],
)
def test_which_run_a_worker_may_go_on_in(before: Any, again: Any, have: int, text: str) -> None:
    first, second = replace(FIRST, **before), replace(FIRST, **again)
    check_run(None, second, have)
    if not text:
        check_run(first, second, have)
        return
    with pytest.raises(RefusedError, match=text):
        check_run(first, second, have)


def test_a_server_that_was_started_anew_before_its_run_began_is_joined(station: Callable[..., Station]) -> None:
    place = station(Script())
    place.wait(lambda: place.courier.welcome is not None)
    first = place.courier.welcome
    address = place.server.address
    place.server.close("moved")
    place.server = ServerThread(QUICK, address)
    place.wait(lambda: place.courier.welcome is not first)
    place.begin()
    place.exchange(1)
    assert place.outcomes == [Outcome(1, True, 0)]


def test_what_went_wrong_in_the_background_is_raised_to_who_waits(station: Callable[..., Station]) -> None:
    """And to whoever looks later."""
    place = station(Script())
    place.begin()
    place.server.close("gone for good")
    place.courier._link._patience_s = 0.5
    with pytest.raises(UnreachableError, match="nobody answered"):
        place.exchange(1)
    with pytest.raises(UnreachableError):
        place.courier.check()


def test_a_bug_in_the_background_is_raised_too(
    station: Callable[..., Station], caplog: pytest.LogCaptureFixture
) -> None:
    place = station(Script())
    place.begin()
    place.courier._post(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        place.wait(lambda: False)
    assert "the courier failed" in caplog.text


def test_after_it_has_left_nobody_waits_for_an_answer(station: Callable[..., Station]) -> None:
    place = station(Script())
    place.begin()
    place.courier.close("done")
    ticket = place.courier.ask(m.Status())
    with pytest.raises(NetworkError, match="has left the run"):
        place.wait(ticket.done.is_set)
    assert eventually(lambda: place.member().state.value == "gone")


def test_a_wait_looks_up_although_nothing_comes(station: Callable[..., Station]) -> None:
    """So a signal handler runs within a slice, and `give_up` is asked."""
    place = station(Script(), RunConfig(beat_s=1800.0, patience_s=3600.0, follow=False))
    place.begin()
    asked: list[None] = []

    def give_up() -> bool:
        asked.append(None)
        return len(asked) > 3

    assert not place.courier.wait(lambda: False, give_up)
    assert SLICE_S <= 0.2


def test_closing_does_not_wait_for_a_server_that_hangs(station: Callable[..., Station]) -> None:
    place = station(Script())
    place.begin()
    with stalled(place.server):
        place.courier.close("interrupted", 0.2)  # raises when its thread waits on
        assert place.member().state.value == "ready", "the server has not heard of it"


@contextlib.contextmanager
def stalled(server: ServerThread) -> Iterator[None]:
    """The server's thread stands still."""
    free = threading.Event()
    server._service.coordinator.handle = lambda event, now: free.wait(250.0) and []
    try:
        yield
    finally:
        del server._service.coordinator.handle
        free.set()
