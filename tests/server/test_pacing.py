"""Each worker's bound of staleness in runs of unequal workers; a barrier goes on without one that is late."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pack import VECTOR, Pack
from room import START, Room

from lightning_async.config import RunConfig, read_config
from lightning_async.errors import ConfigError
from lightning_async.server import Coordinator, live, memory, pacing
from lightning_async.server.actions import Tick
from lightning_async.telemetry import events
from lightning_async.wire.messages import Reason

SPREAD = [100 ** (i / 7) for i in range(8)]  # seconds of a round: the fastest of eight is 100 times the slowest
ONES = torch.ones(8)


def test_at_a_hundredfold_spread_adaptive_bounds_refuse_nearly_nothing_and_a_small_fixed_one_refuses_the_slow() -> None:
    adaptive = Pack(SPREAD, staleness="adaptive").run(2500)
    fixed = Pack(SPREAD, staleness="fixed(bound=5)").run(2500)
    assert adaptive.acceptance >= 0.99
    assert all(r.accepted >= 0.9 * r.pushed for r in adaptive.runners.values())
    assert fixed.acceptance < 0.9
    assert fixed.runners["w7"].accepted == 0
    assert fixed.runners["w4"].accepted < 0.1 * fixed.runners["w4"].pushed


def test_where_rounds_are_sized_to_last_alike_staleness_stays_below_twice_the_workers() -> None:
    """Steps in proportion to speed, at least one: rounds of 1 s and a half, give or take a third."""
    for n in (4, 12):
        seconds = [1.0 + 0.5 * i / n for i in range(n)]
        pack = Pack(seconds, staleness="adaptive").run(50 * n).forget().run(100 * n)
        assert pack.acceptance >= 0.99
        assert pack.room.run.staleness.quantile(0.99) <= 2 * n


def test_a_quorum_of_half_keeps_staleness_below_twice_the_workers_at_a_hundredfold_spread() -> None:
    pack = Pack(SPREAD, staleness="adaptive", quorum=4).run(300).forget().run(2000)
    assert pack.acceptance >= 0.99
    assert pack.room.run.staleness.quantile(0.99) <= 2 * len(SPREAD)


def test_a_worker_that_becomes_ten_times_slower_is_refused_a_few_times_at_most() -> None:
    pack = Pack([1.0] * 6, staleness="adaptive(floor=0.5)").run(300).forget()
    pack.runners["w0"].seconds = 20.0
    pack.run(2500)
    slow = pack.runners["w0"]
    assert slow.pushed >= 20
    assert 1 <= slow.pushed - slow.accepted <= 3
    assert pack.acceptance >= 0.99


def test_bounds_follow_the_number_of_workers_at_once() -> None:
    pack = Pack([1.0] * 3 + [20.0], staleness="adaptive").run(400)
    before = pacing.bound(pack.room.run, pack.member("w3"))
    for i in range(10, 22):
        pack.join(f"w{i}", 1.0)
    assert pacing.bound(pack.room.run, pack.member("w3")) > 2.5 * before
    pack.forget().run(3000)
    assert pack.acceptance >= 0.99


def test_updates_on_their_way_when_many_leave_are_still_taken() -> None:
    pack = Pack([1.0] * 12 + [30.0], staleness="adaptive").run(1500).forget()
    for i in range(10):
        pack.leave(f"w{i}")
    assert len(pack.room.run.members.workers()) == 3
    pack.run(100)
    assert pack.runners["w12"].pushed >= 1
    assert pack.acceptance == 1.0


def test_a_replayed_old_update_is_refused_however_long_its_sender_waited() -> None:
    pack = Pack([1.0] * 4, staleness="adaptive").run(600)
    run = pack.room.run
    receipt = pack.room.push("w0", VECTOR, base=run.version - 100)
    assert not receipt.accepted
    assert receipt.reason == Reason.STALE.value
    assert "the bound is" in receipt.detail
    assert pack.room.push("w1", VECTOR, base=run.version).accepted


def test_before_anything_is_known_an_update_is_taken() -> None:
    pack = Pack([1.0] * 2, staleness="adaptive(ceiling=30.0)")
    for _ in range(50):
        assert pack.room.push("w0", VECTOR).accepted
    assert pack.room.push("w1", VECTOR, base=0).accepted


def test_status_shows_bounds_staleness_and_acceptance() -> None:
    pack = Pack([1.0, 10.0], staleness="adaptive").run(300)
    state = pack.room.state()
    slow, fast = state["workers"]["w1"], state["workers"]["w0"]
    assert slow["bound"] > fast["bound"] >= 4
    assert slow["staleness_mean"] == pytest.approx(10, abs=2)
    assert slow["staleness_p99"] >= slow["staleness_mean"] > fast["staleness_p99"] >= 0
    assert state["acceptance"] == slow["acceptance"] == 1.0
    pack.room.push("w1", VECTOR, base=0)
    accepted = pack.member("w1").accepted
    assert pack.room.state()["workers"]["w1"]["acceptance"] == accepted / (accepted + 1)
    empty = Room(staleness="unbounded").begin("a").state()
    assert empty["workers"]["a"]["bound"] is empty["workers"]["a"]["staleness_p99"] is empty["acceptance"] is None
    assert Room().begin("a").state()["workers"]["a"]["bound"] == 50


def test_a_dumped_run_goes_on_with_the_same_bounds_and_a_restored_one_knows_the_paces() -> None:
    pack = Pack([1.0, 3.0, 10.0], staleness="adaptive", workers=3).run(300)
    run = pack.room.run
    record, tensors = memory.dump(run)
    again = Coordinator.continued(run.config, record | {"live": live.dump(run)}, tensors)
    for name in pack.runners:
        member = again.run.members.named(name)
        assert member is not None
        assert member.pace == pack.member(name).pace
        again.run.now = run.now
        assert pacing.bound(again.run, member) == pacing.bound(run, pack.member(name))
    assert again.run.rate == run.rate
    away = Coordinator.restored(run.config, record, tensors).run
    slow = away.members.named("w2")
    assert slow is not None
    assert slow.pace.since is away.rate.last_at is None
    assert slow.pace.round_s == pack.member("w2").pace.round_s


# Synchronous training.


def sync(**more: Any) -> Room:
    return Room(**{"quorum": "all", "staleness": "fixed(bound=0)", "patience_s": 30.0} | more)


def beats(room: Room, seconds: float, *names: str) -> None:
    """Let time pass while these are heard."""
    end = room.now + seconds
    while room.now < end:
        room.now += 5.0
        for name in names:
            member = room.run.members.named(name)
            assert member is not None
            member.seen_at = room.now
        room.handle(Tick())


def test_a_barrier_goes_on_without_a_worker_that_is_there_and_sends_nothing() -> None:
    room = sync().begin("a", "b")
    assert room.push("a", ONES).accepted
    beats(room, 25.0, "a", "b")
    assert room.run.version == 0
    beats(room, 10.0, "a", "b")
    assert room.run.version == 1
    (late,) = room.events(events.Late)
    assert late.worker == "b"
    assert 30 < late.waited_s <= 40
    assert room.state()["workers"]["b"]["late"] is True
    assert room.push("a", ONES).accepted, "the next barrier does not wait for it"
    assert room.run.version == 2


def test_a_late_worker_is_waited_for_again_once_it_has_sent_something() -> None:
    room = sync().begin("a", "b")
    room.push("a", ONES)
    beats(room, 35.0, "a", "b")
    assert room.run.version == 1
    receipt = room.push("b", ONES, base=0)
    assert (receipt.accepted, receipt.reason) == (False, Reason.STALE.value)
    room.push("a", ONES)
    assert room.run.version == 1
    room.push("b", ONES)
    assert room.run.version == 2
    assert torch.equal(room.parameters, START - 2 * ONES)
    assert len(room.events(events.Late)) == 1


@pytest.mark.parametrize("staleness", ["fixed(bound=0)", "fixed(bound=50)"])
def test_who_sends_what_is_refused_holds_nobody_up(staleness: str) -> None:
    """Each of its updates begins a round, so it would never be late."""
    room = sync(staleness=staleness).begin("a", "b")
    assert room.push("a", ONES).accepted
    assert room.push("b", ONES, base=99).reason == Reason.FUTURE.value
    assert room.run.version == 0, "one bad update may be followed by a good one"
    room.now += 1.0
    assert not room.push("b", ONES, base=99).accepted
    assert room.run.version == 1
    assert room.state()["workers"]["b"]["late"] is True
    assert room.push("a", ONES).accepted
    assert room.run.version == 2
    assert room.push("b", ONES).accepted, "and now it is one of them again"
    assert room.run.version == 2
    assert room.push("a", ONES).accepted
    assert room.run.version == 3


def test_a_slow_worker_is_given_four_of_its_usual_rounds() -> None:
    room = sync().begin("a", "b")
    for _ in range(3):
        room.push("a", ONES)
        beats(room, 25.0, "a", "b")
        room.push("b", ONES)
    assert room.run.version == 3
    room.push("a", ONES)
    beats(room, 90.0, "a", "b")
    assert room.run.version == 3
    beats(room, 20.0, "a", "b")
    assert room.run.version == 4


def test_the_barriers_patience_may_be_given() -> None:
    room = sync(barrier_s=7.0).begin("a", "b")
    room.push("a", ONES)
    beats(room, 5.0, "a", "b")
    assert room.run.version == 0
    beats(room, 5.0, "a", "b")
    assert room.run.version == 1


def test_a_barrier_waits_for_who_joins_and_not_for_who_leaves() -> None:
    room = sync().begin("a", "b")
    room.push("a", ONES)
    room.hello("c")
    room.push("b", ONES)
    assert room.run.version == 0
    room.push("c", ONES)
    assert room.run.version == 1
    room.push("a", ONES)
    room.push("b", ONES)
    room.wait(31.0, step_s=31.0)
    assert room.run.version == 2


def test_nobody_is_late_where_no_barrier_is() -> None:
    room = Room(quorum=2).begin("a", "b", "c")
    room.push("a", ONES)
    beats(room, 500.0, "a", "b", "c")
    assert room.run.version == 0
    assert not room.events(events.Late)


@pytest.mark.parametrize("values", [{"mode": "sync"}, {"mode": "sync", "staleness": 0, "quorum": "all"}])
def test_the_mode_is_short_for_both(values: dict[str, Any]) -> None:
    assert read_config(values) == RunConfig(staleness="fixed(bound=0)", quorum="all")
    assert read_config({"mode": "async", "staleness": 7}) == RunConfig(staleness="fixed(bound=7)")
    assert read_config({"mode": None}) == RunConfig()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"mode": "sync", "staleness": "adaptive"},
            "mode='sync' means staleness='fixed.bound=0.'; got staleness='adap",
        ),
        ({"mode": "sync", "quorum": 3}, "means quorum='all'; got quorum=3"),
        ({"mode": "both"}, "mode: got 'both', expected 'async' or 'sync'"),
        ({"barrier_s": 0.0}, "barrier_s: got 0.0"),
        ({"barrier_s": math.inf}, "barrier_s: got inf"),
    ],
)
def test_what_contradicts_the_mode_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_config(values)


def test_the_age_gate_of_an_outer_optimizer_is_a_weight_of_the_run() -> None:
    gated = RunConfig(outer="age_gated_adam(alpha=0.2, cutoff=8.0)", weight="constant")
    rules = Coordinator(gated, "r").run
    assert rules.rules.weight.of(4) == pytest.approx(math.cos(math.pi / 4) ** 2 * math.exp(-0.8))
    assert rules.config.weight == "constant()"
    both = Coordinator(RunConfig(outer="age_gated_adam", weight="polynomial(a=1.0)"), "r").run.rules.weight
    assert both.spec == "product(polynomial(a=1.0), cosine_gate(alpha=0.1, cutoff=16.0))"
    again = Coordinator(Coordinator(RunConfig(outer="age_gated_adam"), "r").run.config, "r").run
    assert again.rules.weight == Coordinator(RunConfig(outer="age_gated_adam"), "r").run.rules.weight
