"""What a hostile worker of a run can say of its leases: nothing that costs the others much."""

from __future__ import annotations

import pytest
from room import Room
from test_leasing import SAMPLES, counting, ledger, named
from test_recording import Taped, check

from lightning_async.scheduling import Market
from lightning_async.server import leasing
from lightning_async.wire import messages as m
from lightning_async.wire.messages import Reason

ROWS = [[0, i % SAMPLES, i % SAMPLES + 1] for i in range(leasing.MOST_ROWS + 1)]


def test_who_says_that_nothing_is_of_use_to_him_ends_no_run() -> None:
    room = Room(epochs=2).begin("a", "b")
    useless = m.Lease(stream="train", length=SAMPLES, count=1, batch=10**6, whole=True)
    room.say("b", useless)
    room.wait(1.0)
    assert not room.run.ended
    for _ in range(14):
        rows = [(a, b, c) for a, b, c in room.say("a", m.Lease(stream="train", length=SAMPLES, count=1)).ranges]
        room.push("a", counting(rows), units=named(rows))
    room.say("b", useless)
    room.wait(1.0)
    assert (room.run.ended, ledger(room)["applied"]) == ("", 14), "the other one can use the last two"


@pytest.mark.parametrize("field", ["holds", "spoiled"])
def test_a_lease_that_names_more_ranges_than_are_read_is_refused(field: str) -> None:
    room = Room().begin("a")
    room.say("a", m.Lease(stream="train", length=SAMPLES, count=4))
    reply = room.say("a", m.Lease(stream="train", length=SAMPLES, count=1, **{field: ROWS}))
    assert (reply.reason, "at most 65536" in reply.detail) == (Reason.PROTOCOL.value, True)
    assert ledger(room)["leased"] == 4


def test_a_push_that_names_more_ranges_than_are_read_is_refused() -> None:
    room = Room().begin("a")
    room.say("a", m.Lease(stream="train", length=SAMPLES, count=4))
    receipt = room.push("a", counting([(0, 0, 1)]), units=[["train", *row] for row in ROWS])
    assert (receipt.accepted, receipt.reason) == (False, Reason.PROTOCOL.value)


def test_of_a_refused_update_with_many_ranges_the_journal_keeps_none() -> None:
    room = Taped().begin("a")
    room.say("a", m.Lease(stream="train", length=SAMPLES, count=4))
    many = named([(number, i, i + 1) for number in range(1, 200) for i in range(SAMPLES)])
    assert room.push("a", counting([(0, 0, 1)]), units=many).reason == Reason.LEASE.value
    assert ledger(room)["returned"] == {}
    few = named([(9, 0, 1)])
    assert room.push("a", counting([(0, 0, 1)]), units=few).reason == Reason.LEASE.value
    assert ledger(room)["returned"] == {Reason.LEASE.value: 1}
    assert max(len(record.head) for record in room.tape.records[-2:]) < 2000
    check(room)


def newest_first(market: Market) -> int | None:
    return len(market.units) - 1


@pytest.mark.parametrize("scheduler", ["first_come", "capability", f"own(path='{__name__}:newest_first')"])
def test_who_trains_on_whole_batches_only_never_gets_less(scheduler: str) -> None:
    """The rest of a pass is smaller than a batch: it goes with the next one."""
    room = Room(scheduler=scheduler).begin("a")
    sizes = []
    for _ in range(4):
        reply = room.say("a", m.Lease(stream="train", length=SAMPLES, count=3, batch=3, whole=True, upto=0))
        sizes.append(sum(stop - start for _, start, stop in reply.ranges))
    assert sizes == [3, 3, 0, 0]
    assert reply.out == 0, "nobody waits for it"
