"""Leases in a run: a sample counts as applied when a version is made of the update that holds it, and then only once.

In the counting runs a data set of eight samples is as long as the model: an update holds minus one where its samples
are, the server adds updates up (sgd, learning rate 1, a quorum of one), so each parameter says how often its sample was
applied.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
import torch
from room import START, Room
from test_recording import Taped, check
from torch import Tensor

from lightning_async.scheduling import Range
from lightning_async.server import leasing, memory
from lightning_async.server.private import Private
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.messages import Reason

ONES = torch.ones(8)
SAMPLES = 8


def lease(room: Room, name: str, count: int, **more: Any) -> list[Range]:
    reply = room.say(name, m.Lease(stream="train", length=SAMPLES, count=count, **more))
    assert isinstance(reply, m.Ranges), reply
    return [(a, b, c) for a, b, c in reply.ranges]


def named(ranges: list[Range], stream: str = "train") -> list[Any]:
    return [[stream, *row] for row in ranges]


def counting(ranges: list[Range]) -> Tensor:
    """The update of a worker that has trained on them."""
    vector = torch.zeros(SAMPLES)
    for _, start, stop in ranges:
        vector[start:stop] -= 1.0
    return vector


def push(room: Room, name: str, ranges: list[Range], **more: Any) -> Any:
    return room.push(name, counting(ranges), units=named(ranges), **more)


def ledger(room: Room) -> dict[str, Any]:
    state: dict[str, Any] = room.state()["streams"]["train"]
    return state


def test_a_sample_is_applied_when_its_update_makes_a_version_not_before() -> None:
    room = Room(quorum=2).begin("a", "b")
    push(room, "a", lease(room, "a", 4))
    assert (ledger(room)["applied"], ledger(room)["waiting"], ledger(room)["leased"]) == (0, 4, 0)
    push(room, "b", lease(room, "b", 4))
    assert (ledger(room)["applied"], ledger(room)["waiting"], ledger(room)["passes"]) == (8, 0, 1)


def test_two_updates_in_one_slot_are_both_applied_by_its_version() -> None:
    room = Room(quorum=2).begin("a", "b")
    for _ in range(2):
        push(room, "a", lease(room, "a", 2))
    assert ledger(room)["waiting"] == 4
    room.push("b", ONES)
    assert ledger(room)["applied"] == 4


def test_what_a_worker_held_comes_back_when_it_falls_silent_and_what_it_pushed_does_not() -> None:
    room = Room(quorum=2).begin("a", "b")
    push(room, "a", lease(room, "a", 2))
    lease(room, "a", 3)
    for _ in range(40):
        room.wait(1.0, step_s=1.0)
        room.say("b", m.Beat())
    assert [(e.worker, e.samples, e.why) for e in room.events(events.Returned)] == [("a", 3, "lost")]
    assert (ledger(room)["waiting"], ledger(room)["free"]) == (2, 3)
    assert lease(room, "b", 3) == [(0, 2, 5)]
    assert ledger(room)["cost"] == [["lost", "a", 0, 2, 5]]


def test_a_worker_that_leaves_or_starts_anew_gives_its_leases_back() -> None:
    room = Room().begin("a", "b")
    lease(room, "a", 3)
    room.hello("a", instance="1")
    assert ledger(room)["leased"] == 3, "the same process has only lost its connection"
    room.say("a", m.Leave())
    lease(room, "b", 2)
    again = Room()
    memory.restore(again.run, *memory.dump(room.run))
    again.hello("b", instance="2")
    assert ledger(again)["leased"] == 0
    assert ledger(again)["returned"] == {"left": 3, "restarted": 2}


def test_a_lost_answer_is_given_again_and_an_old_request_is_not_done() -> None:
    room = Room().begin("a")
    first = lease(room, "a", 3, number=1, holds=[])
    assert lease(room, "a", 3, number=1, holds=[]) == first
    second = lease(room, "a", 3, number=2, holds=[list(row) for row in first])
    assert second == [(0, 3, 6)]
    late = room.say("a", m.Lease(stream="train", length=SAMPLES, count=3, number=1, holds=[]))
    assert late.reason == Reason.SEQUENCE.value
    assert ledger(room)["leased"] == 6


def test_what_a_worker_does_not_hold_any_more_goes_to_others() -> None:
    room = Room().begin("a", "b")
    lease(room, "a", 4, number=1)
    assert lease(room, "a", 1, number=2, holds=[[0, 0, 2]]) == [(0, 2, 3)]
    assert lease(room, "b", 1) == [(0, 3, 4)]
    assert ledger(room)["returned"] == {"given back": 2}


def test_a_refused_update_keeps_its_samples_and_sends_them_with_the_next_one() -> None:
    room = Room(staleness="fixed(bound=0)").begin("a", "b")
    mine = lease(room, "a", 4)
    room.push("b", ONES)
    assert push(room, "a", mine, base=0).reason == Reason.STALE.value
    assert (ledger(room)["leased"], ledger(room)["returned"]) == (4, {"stale": 4})
    assert ledger(room)["cost"] == [["stale", "a", 0, 0, 4]]
    assert push(room, "a", mine).accepted
    assert ledger(room)["applied"] == 4


def test_an_update_with_samples_that_are_somebody_elses_now_is_thrown_away() -> None:
    room = Room().begin("a", "b")
    mine = lease(room, "a", 4)
    assert lease(room, "a", 1, number=1, holds=[]) == [(0, 0, 1)]
    theirs = lease(room, "b", 3)
    assert theirs == [(0, 1, 4)]
    before = room.parameters.clone()
    receipt = push(room, "a", mine)
    assert (receipt.accepted, receipt.reason) == (False, Reason.LEASE.value)
    assert torch.equal(room.parameters, before)
    assert push(room, "b", theirs).accepted
    assert push(room, "b", theirs).reason == Reason.LEASE.value, "nor is what is done"
    assert ledger(room)["applied"] == 3


@pytest.mark.parametrize(
    "units", [[["other", 0, 0, 1]], [["train", 0, 0, 9]], [["train", 0, 1]], ["train"], [[]], [[1, 0, 0, 1]]]
)
def test_units_that_cannot_be_are_refused(units: list[Any]) -> None:
    room = Room().begin("a")
    lease(room, "a", 4)
    assert room.push("a", ONES, units=units).reason == Reason.PROTOCOL.value
    assert ledger(room)["leased"] == 4


def test_what_is_named_twice_in_an_update_is_booked_once() -> None:
    room = Room().begin("a")
    mine = lease(room, "a", 4)
    assert room.push("a", ONES, units=named(mine + mine)).accepted
    assert ledger(room)["applied"] == 4


def test_what_a_filter_drops_comes_back() -> None:
    room = Room(Private(secret=1, validation=falls), aggregation="zeno(rho=0.2)").begin(*"abcd")
    mine = lease(room, "a", 4)
    assert room.push("a", -50 * ONES, units=named(mine)).accepted
    assert (room.run.version, ledger(room)["applied"], ledger(room)["free"]) == (0, 0, 4)
    assert room.push("a", 50 * ONES, units=named(lease(room, "a", 4))).accepted
    assert (room.run.version, ledger(room)["applied"]) == (1, 4)


def falls(tensors: Any) -> dict[str, Tensor]:
    return {name: torch.full_like(tensors[name], 0.1) for name in ("w", "b")}


def test_what_was_not_finite_twice_is_set_aside() -> None:
    room = Room().begin("a")
    assert lease(room, "a", 2, number=1) == [(0, 0, 2)]
    assert lease(room, "a", 2, number=2, spoiled=[[0, 0, 2]], holds=[]) == [(0, 0, 2)]
    assert lease(room, "a", 8, number=3, spoiled=[[0, 0, 2]], holds=[], upto=0) == [(0, 2, 8)]
    assert (ledger(room)["aside"], ledger(room)["returned"]["not_finite"]) == (2, 4)


def test_a_lease_is_overdue_only_when_somebody_needs_it() -> None:
    room = Room().begin("a", "b")
    mine = lease(room, "a", 4)
    for _ in range(60):
        room.wait(1.0, step_s=1.0)
        room.say("a", m.Beat())
        room.say("b", m.Beat())
    theirs = lease(room, "b", 4, upto=0, batch=4)
    assert theirs == [(0, 4, 8)], "there is other work"
    assert lease(room, "b", 4, upto=0, batch=4) == mine
    assert room.events(events.Returned)[-1].why == "overdue"
    assert push(room, "a", mine).reason == Reason.LEASE.value
    assert push(room, "b", theirs + mine).accepted
    assert ledger(room)["passes"] == 1


def test_leases_become_smaller_towards_the_end_of_a_pass_in_whole_batches() -> None:
    room = Room().begin("a", "b")

    def take(name: str, **more: Any) -> list[Range]:
        reply = room.say(name, m.Lease(stream="big", length=100, count=60, upto=0, batch=4, **more))
        return [(a, b, c) for a, b, c in reply.ranges]

    taken = [take(name) for name in "abababababababab"]
    sizes = [sum(stop - start for _, start, stop in rows) for rows in taken]
    assert sum(sizes) == 100
    assert sizes[0] == 24
    assert all(later <= max(4, before) for before, later in itertools.pairwise(sizes))
    assert all(size % 4 == 0 for size in sizes)


def test_batches_that_must_be_whole_are_and_what_is_left_goes_with_the_next_pass() -> None:
    room = Room().begin("a")
    assert lease(room, "a", 100, upto=0, batch=3, whole=True) == [(0, 0, 6)]
    assert lease(room, "a", 100, upto=0, batch=3, whole=True) == []
    assert lease(room, "a", 100, upto=1, batch=3, whole=True) == [(0, 6, 8), (1, 0, 7)]


def epoch(room: Room, name: str, number: int, of: int) -> Any:
    return room.say(name, m.Lease(stream="train", length=SAMPLES, count=4, epoch=number, epochs=of))


def test_who_comes_while_others_train_ends_with_them() -> None:
    room = Room().begin("a", "b", "c")
    first = epoch(room, "a", 0, 2)
    assert (first.upto, first.final) == (0, False)
    assert sum(stop - start for _, start, stop in lease(room, "a", 8)) == 8
    late = epoch(room, "b", 0, 2)
    assert (late.upto, late.final, bool(late.ranges)) == (1, True, True)
    again = epoch(room, "a", 1, 2)
    assert (again.upto, again.final) == (1, True)
    while lease(room, "a", 8, upto=1):
        pass
    nothing = epoch(room, "c", 0, 2)
    assert (nothing.ranges, nothing.upto, nothing.final, nothing.out) == ([], 1, True, 16)
    for name in "abc":
        room.say(name, m.Leave())
    room.hello("d")
    new = epoch(room, "d", 0, 1)
    assert (new.upto, new.final) == (1, True), "nobody trains any more, so this is a fit of its own"
    assert new.ranges[0] == [0, 0, 4], "and what the others left comes first"


class Fleet:
    """Workers that count: they lease, push, are refused, die, come back, and the server dies too."""

    most_rounds = 1000  # to do what is left

    def __init__(self, room: Taped, seed: int, passes: int) -> None:
        self.room, self.chance, self.passes = room, random.Random(seed), passes
        self.mine: dict[str, list[Range]] = {name: [] for name in "abc"}
        self.number = dict.fromkeys("abc", 0)
        self.instance = dict.fromkeys("abc", 1)
        self.lost: Any = None

    def there(self, name: str) -> bool:
        member = self.room.run.members.named(name)
        return member is not None and member.alive

    def take(self, name: str) -> None:
        self.number[name] += 1
        holds = [list(row) for row in self.mine[name]]
        again = self.chance.random() < 0.2  # the answer is lost, and it asks once more
        for _ in range(1 + again):
            got = lease(
                self.room, name, self.chance.randint(1, 3), number=self.number[name], holds=holds, upto=self.passes - 1
            )
        self.mine[name] += got

    def train(self, name: str, late: int = 0) -> None:
        rows = self.mine[name]
        if not rows:
            return
        member = self.room.run.members.named(name)
        assert member is not None
        base, seq = max(0, self.room.run.version - late), member.last_seq + 1
        receipt = push(self.room, name, rows, base=base, seq=seq)
        if self.chance.random() < 0.2:
            assert push(self.room, name, rows, base=base, seq=seq) == receipt, "its receipt was lost"
        if receipt.accepted or receipt.reason == Reason.LEASE.value:
            self.mine[name] = []
        else:
            assert receipt.reason == Reason.STALE.value

    def act(self) -> None:
        name, dice = self.chance.choice("abc"), self.chance.random()
        if not self.there(name):
            if dice < 0.4:
                fresh = self.chance.random() < 0.5
                self.instance[name] += fresh
                if fresh:
                    self.mine[name], self.number[name] = [], 0
                self.room.hello(name, instance=str(self.instance[name]))
        elif dice < 0.4:
            self.take(name)
        elif dice < 0.75:
            self.train(name, late=self.chance.choice([0, 0, 1, 4]))
        elif dice < 0.85:
            self.silence(name)
        elif dice < 0.9:
            self.room.say(name, m.Leave())
            self.mine[name] = []
        elif dice < 0.95:
            self.room.restart()
        else:
            self.mine[name] = self.mine[name][:1]  # it gives up the rest

    def silence(self, name: str) -> None:
        for _ in range(4):
            self.room.wait(10.0, step_s=10.0)
            for other in "abc":
                if other != name and self.there(other):
                    self.room.say(other, m.Beat())

    def finish(self) -> None:
        for name in "abc":
            if not self.there(name):
                self.instance[name] += 1
                self.mine[name], self.number[name] = [], 0
                self.room.hello(name, instance=str(self.instance[name]))
        for _ in range(self.most_rounds):
            for name in "abc":
                self.take(name)
                self.train(name)
            if self.room.run.streams["train"].passes == self.passes:
                return


def lives(seeds: range, **config: Any) -> Counter[str]:
    """What happened in so many lives of a fleet, after each of which every sample was applied once a pass."""
    happened: Counter[str] = Counter()
    for seed in seeds:
        room = Taped(staleness="fixed(bound=2)", weight="constant", **config).begin("a", "b", "c")
        fleet = Fleet(room, seed, passes=4)
        for _ in range(120):
            fleet.act()
        fleet.finish()
        assert torch.equal(room.parameters, START + 4.0), f"seed {seed}: not each of the eight samples four times"
        assert ledger(room)["applied"] == 4 * SAMPLES
        happened.update(ledger(room)["returned"])
        for name in "abc":
            happened.update(room.state()["workers"][name]["refused"])
        check(room)
    return happened


def test_every_sample_is_applied_once_a_pass_whatever_happens() -> None:
    happened = lives(range(12))
    assert happened.keys() >= {"stale", "lease", "lost", "left", "restarted", "given back"}, "or less was tested"


def done_at_the_push(run: Any, member: Any, push: m.Push) -> Any:
    for stream, row in leasing.units_of(run, push):
        run.streams[stream].claim(member.name, [row], run.now)
        run.streams[stream].apply(member.name, [row])


def nothing(*_: Any) -> None: ...


MUTATIONS = {
    "done at the push, accepted or not": {"check": done_at_the_push, "claim": nothing, "settle": nothing},
    "nobody asks whose samples they are": {"check": nothing},
    "what a dead worker held stays with it": {"release": nothing, "_take_back": nothing},
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_count_notices(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, instead in MUTATIONS[mutation].items():
        monkeypatch.setattr(leasing, name, instead)
    monkeypatch.setattr(Fleet, "most_rounds", 200)
    with pytest.raises(AssertionError):
        lives(range(12))


def test_the_ledger_is_part_of_a_snapshot() -> None:
    room = Room(quorum=2).begin("a", "b")
    push(room, "a", lease(room, "a", 3, number=1))
    lease(room, "b", 3, number=1)
    record, tensors = memory.dump(room.run)
    again = Room(quorum=2)
    memory.restore(again.run, record, tensors)
    assert again.run.streams == room.run.streams
    assert again.run.members.named("b").granted == room.run.members.named("b").granted  # type: ignore[union-attr]
    assert again.run.stepper is not None
    assert [slot.units for slot in again.run.stepper.waiting[0]] == [(("train", (0, 0, 3)),)]
