"""Rounds that are fitted to their workers, and steps that wait as long as nobody notices: in a coordinator's time."""

from __future__ import annotations

import pytest
import torch
from pack import Pack
from room import Room

from lightning_async.server import Coordinator, memory
from lightning_async.server.grace import worth_waiting
from lightning_async.staleness import Pace
from lightning_async.telemetry import Ewma, events
from lightning_async.wire import messages as m

ONES = torch.ones(8)
SPREAD = [100 ** (i / 7) for i in range(8)]  # seconds of a round: the fastest of eight is 100 times the slowest


def test_a_receipt_says_how_long_the_next_rounds_are_and_an_event_that_they_changed() -> None:
    room = Room(local_steps="auto(steps=16)", workers=2).begin("fast", "slow")
    sizes = []
    for _ in range(8):
        sizes.append(room.push("fast", ONES, step_s=0.5, exchange_s=0.1).round_steps)
        room.push("slow", ONES, step_s=2.0, exchange_s=0.1)
    assert sizes[:3] == [2, 4, 8], "twice as many each time"
    assert sizes[-1] == pytest.approx(16 * 1.25 / 0.5, rel=0.26)
    told = [(event.before, event.after) for event in room.events(events.RoundSized) if event.worker == "fast"]
    assert told[0] == (1, 2)
    assert [before for before, _ in told[1:]] == [after for _, after in told[:-1]]
    assert told[-1][1] == sizes[-1] == room.state()["workers"]["fast"]["round_steps"]


def test_a_refused_update_is_told_too() -> None:
    room = Room(local_steps="auto", staleness="fixed(bound=0)", quorum=1).begin("a", "b")
    room.push("a", ONES, step_s=1.0)
    receipt = room.push("b", ONES, base=0, step_s=1.0)
    assert (receipt.accepted, receipt.round_steps) == (False, 2)


def test_where_all_rounds_are_alike_nothing_is_told() -> None:
    room = Room(local_steps=4).begin("a")
    assert room.push("a", ONES, step_s=1.0, exchange_s=1.0).round_steps == 0
    assert room.events(events.RoundSized) == []


def test_a_worker_that_returns_and_a_run_that_is_restored_know_the_size() -> None:
    room = Room(local_steps="auto").begin("a", "b")
    for _ in range(6):
        size = room.push("a", ONES, step_s=1.0, exchange_s=0.1).round_steps
    room.say("a", m.Leave())
    assert room.hello("a", instance="2").round_steps == size == 16
    again = Coordinator.restored(room.run.config, *memory.dump(room.run)).run.members.named("a")
    member = room.run.members.named("a")
    assert again is not None
    assert member is not None
    assert (again.round_steps, again.speed) == (member.round_steps, member.speed)


@pytest.mark.parametrize("step_s", [1e308, 5e-324, -1.0, 0.0])
@pytest.mark.parametrize("exchange_s", [1.7e308, 5e-324, -1e308])
def test_no_claim_of_times_stops_or_steers_the_others(step_s: float, exchange_s: float) -> None:
    room = Room(local_steps="auto(steps=16, most=64)", workers=5).begin(*"abcde")
    for _ in range(12):
        room.push("e", ONES, step_s=step_s, exchange_s=exchange_s)
        for name in "abcd":
            size = room.push(name, ONES, step_s=1.0, exchange_s=0.1).round_steps
            assert 1 <= size <= 64
    assert 16 <= size <= 64
    assert room.run.version == 60, "each update once"


def test_who_is_in_quarantine_steers_nobody() -> None:
    room = Room(local_steps="auto(steps=16, most=64)", workers=3).begin("a", "b", "c")
    member = room.run.members.named("c")
    assert member is not None
    member.barred_until = 10**6
    for _ in range(8):
        room.push("c", ONES, step_s=1.0, exchange_s=1e6)
        size = room.push("a", ONES, step_s=1.0, exchange_s=0.1).round_steps
        room.push("b", ONES, step_s=1.0, exchange_s=0.1)
    assert size == 16


def test_a_claim_of_more_steps_than_the_largest_rounds_explain_is_refused() -> None:
    room = Room(local_steps="auto(most=32)").begin("a")
    assert room.push("a", ONES, steps=20 * 32).accepted
    refused = room.push("a", ONES, steps=20 * 32 + 1)
    assert refused.reason == "limit"
    assert "640 at most" in refused.detail


def settled(room: Room, names: str, seconds: float, rounds: int = 6) -> None:
    """Everybody's rounds are known to last so long, and all have just begun one."""
    for _ in range(rounds):
        room.wait(seconds)
        for name in names:
            room.push(name, ONES)


def test_grace_waits_for_who_is_expected_soon_and_not_for_who_is_not() -> None:
    room = Room(quorum=2, grace_s="auto", workers=3).begin("a", "b", "c")
    settled(room, "abc", 10.0)
    at = room.run.version
    room.wait(10.0)
    room.push("a", ONES)
    room.push("b", ONES)
    assert room.run.version == at, "c is due now, and nobody looks for the version for another 5 s"
    room.wait(1.0)
    room.push("c", ONES)
    assert room.run.version == at + 1
    assert room.events(events.Stepped)[-1].workers == ("a", "b", "c")


def test_grace_ends_when_the_expected_one_is_late() -> None:
    room = Room(quorum=2, grace_s="auto", workers=3).begin("a", "b", "c")
    settled(room, "abc", 10.0)
    at = room.run.version
    room.wait(10.0)
    room.push("a", ONES)
    room.push("b", ONES)
    room.wait(2.0)
    assert room.run.version == at
    room.wait(1.0)
    assert room.run.version == at + 1, "a quarter of its round is over"


def test_grace_is_no_longer_than_what_nobody_notices() -> None:
    """One that sent at 100 s looks for the version at 110 s, and half of that is given."""
    room = Room(workers=2).begin("sent", "due")
    sent, due = (room.run.members.named(name) for name in ("sent", "due"))
    assert sent is not None
    assert due is not None
    sent.pace = Pace(round_s=Ewma(10.0), since=100.0)
    for since, waits in ((96.0, False), (95.0, True), (92.0, True), (88.0, True), (87.0, False)):
        due.pace = Pace(round_s=Ewma(10.0), since=since)
        assert worth_waiting([sent], [due], 100.0) is waits, since
    due.pace = Pace(round_s=Ewma(10.0), since=95.0)
    assert worth_waiting([sent], [due], 104.9)
    assert not worth_waiting([sent], [due], 105.0)


def test_nobody_is_waited_for_whose_rounds_are_unknown() -> None:
    room = Room(quorum=1, grace_s="auto", workers=2).begin("a", "b")
    room.push("a", ONES)
    assert room.run.version == 1


def test_grace_makes_steps_of_more_workers_than_the_quorum() -> None:
    without, with_grace = (Pack([1.0] * 6, quorum=2, grace_s=grace).run(600) for grace in (0.0, "auto"))
    made = [len(pack.room.events(events.Stepped)[-1].workers) for pack in (without, with_grace)]
    assert made[0] == 2
    assert 600 / with_grace.room.run.version > 1.5 * 600 / without.room.run.version


def test_the_slowest_of_a_hundredfold_spread_is_not_what_a_step_waits_for() -> None:
    pack = Pack(SPREAD, quorum=4, grace_s="auto", staleness="adaptive").run(300).forget().run(1500)
    assert pack.acceptance >= 0.99
