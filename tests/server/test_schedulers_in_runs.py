"""Schedulers in a run: every sample is still applied once, what they saw survives, and passing over hangs nobody."""

from __future__ import annotations

from typing import Any

import pytest
from room import Room
from test_leasing import SAMPLES, counting, lives, named
from test_recording import Taped, check

from lightning_async.scheduling import SCHEDULERS, Market
from lightning_async.server import market as markets
from lightning_async.server import memory
from lightning_async.wire import messages as m

SPECS = [f"{name}()" for name in SCHEDULERS if name not in ("own", "first_come")]
SPECS += ["gale_shapley(proposers='units')", f"own(path='{__name__}:newest_first')"]


def newest_first(market: Market) -> int | None:
    return len(market.units) - 1


@pytest.mark.parametrize("scheduler", SPECS)
@pytest.mark.parametrize("predictor", ["ewma", "least_squares"])
def test_every_sample_is_applied_once_a_pass_by_every_scheduler(scheduler: str, predictor: str) -> None:
    """And the journal of such a run, replayed, gives the same run: `lives` checks that."""
    assert lives(range(3), scheduler=scheduler, predictor=predictor)


def ask(room: Room, name: str, count: int = 2, **more: Any) -> Any:
    return room.say(name, m.Lease(stream="train", length=SAMPLES, count=count, batch=count, upto=0, **more))


def train(room: Room, name: str, reply: Any, seconds: float) -> None:
    room.now += seconds
    rows = [(a, b, c) for a, b, c in reply.ranges]
    samples = sum(stop - start for _, start, stop in rows)
    assert room.push(name, counting(rows), units=named(rows), samples=samples).accepted


def begun(**config: Any) -> Taped:
    """Two workers of which "slow" takes a hundred times as long, and the server knows it."""
    room = Taped(**config).begin("fast", "slow")
    for name, seconds in (("fast", 0.1), ("slow", 10.0)):
        train(room, name, ask(room, name), seconds)
    return room


def test_the_slow_worker_is_passed_over_at_the_end_and_told_that_there_is_more_to_come() -> None:
    room = begun(scheduler="capability")
    nothing = ask(room, "slow", 4)
    assert nothing.ranges == []
    assert nothing.out == 4, "it waits, for the fast one may die"
    assert ask(room, "fast", 4).ranges
    check(room)


def test_when_the_fast_one_goes_the_slow_one_gets_what_is_left() -> None:
    room = begun(scheduler="capability")
    assert ask(room, "slow", 4).ranges == []
    room.say("fast", m.Leave())
    assert ask(room, "slow", 4).ranges


def test_a_fast_worker_that_asks_no_more_is_not_waited_for() -> None:
    room = begun(scheduler="capability", patience_s=20.0)
    assert ask(room, "slow", 4).ranges == []
    for _ in range(60):
        room.wait(10.0, step_s=10.0)
        room.say("fast", m.Beat())
        room.say("slow", m.Beat())
    assert ask(room, "slow", 4).ranges


def test_what_the_predictor_has_learnt_survives() -> None:
    room = begun(scheduler="capability", predictor="least_squares")
    again = Room(scheduler="capability", predictor="least_squares")
    memory.restore(again.run, *memory.dump(room.run))
    slow = again.run.members.named("slow")
    assert slow is not None
    seconds = markets._seconds(again.run, slow)(2)
    assert seconds == markets._seconds(room.run, room.run.members.named("slow"))(2)  # type: ignore[arg-type]
    assert seconds > 5.0


def test_who_loses_samples_is_less_reliable_in_the_schedulers_sight() -> None:
    room = begun(scheduler="gale_shapley")
    member = room.run.members.named("slow")
    assert member is not None
    before = markets._worker(room.run, member, room.run.streams["train"]).telemetry.reliability
    room.say("slow", m.Lease(stream="train", length=SAMPLES, count=4))
    for _ in range(5):
        room.wait(10.0, step_s=10.0)
        room.say("fast", m.Beat())
    after = markets._worker(room.run, member, room.run.streams["train"]).telemetry.reliability
    assert before == 1.0
    assert 0.9 < after < 1.0


def test_capabilities_come_with_the_greeting_and_speeds_of_lines_with_leases() -> None:
    room = Room(scheduler="gale_shapley").begin("a")
    room.hello("a", host={"memory_bytes": 2**34, "cores": 8, "torch": "2"})
    ask(room, "a", bytes_per_s=1e6)
    member = room.run.members.named("a")
    assert member is not None
    seen = markets._worker(room.run, member, room.run.streams["train"])
    assert (seen.capability.memory_bytes, seen.capability.cores, seen.telemetry.bytes_per_s) == (2**34, 8, 1e6)
    room.hello("a", host={"memory_bytes": "a lot", "cores": None})
    assert member.machine.memory_bytes == 0
