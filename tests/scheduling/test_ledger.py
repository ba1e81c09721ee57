"""The ledger: whatever workers do, every position of every pass is applied once, or can be handed out again."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lightning_async.scheduling import Held, Ledger, Range
from lightning_async.scheduling.ledger import WORN_OUT
from lightning_async.scheduling.ranges import merged, read, size, without

WORKERS = st.sampled_from(["a", "b", "c"])


def positions(ranges: list[Range]) -> list[tuple[int, int]]:
    return [(number, i) for number, start, stop in ranges for i in range(start, stop)]


def lease(ledger: Ledger, worker: str, count: int, upto: int | None = None, now: float = 0.0) -> list[Range]:
    units = ledger.units(count, 1, upto)
    return ledger.lease(worker, units[0], now) if units else []


def done(ledger: Ledger, worker: str, ranges: list[Range]) -> None:
    assert ledger.missing(worker, ranges) == []
    ledger.claim(worker, ranges, 0.0)
    ledger.apply(worker, ranges)


class Churn(RuleBasedStateMachine):
    """Three workers that lease, push, have their updates applied or dropped, die, and push what they no longer hold."""

    @initialize(length=st.integers(1, 30))
    def begin(self, length: int) -> None:
        self.ledger = Ledger(length)
        self.mine: dict[str, list[Range]] = {"a": [], "b": [], "c": []}  # what each believes to hold
        self.slots: list[tuple[str, list[Range]]] = []
        self.applied: Counter[tuple[int, int]] = Counter()

    @rule(worker=WORKERS, count=st.integers(1, 40), upto=st.none() | st.integers(0, 3), which=st.integers(0, 3))
    def take(self, worker: str, count: int, upto: int | None, which: int) -> None:
        units = self.ledger.units(count, 4, upto)
        assert all(unit.size == count for unit in units[:-1])
        if units:
            unit = units[which % len(units)]
            assert upto is None or all(row[0] <= upto for row in unit.ranges)
            self.mine[worker] += self.ledger.lease(worker, unit, 0.0)

    @rule(worker=WORKERS, data=st.data())
    def push(self, worker: str, data: st.DataObject) -> None:
        rows = self.mine[worker]
        if not rows:
            return
        number, start, stop = rows[data.draw(st.integers(0, len(rows) - 1))]
        cut = data.draw(st.integers(start + 1, stop))
        part = [(number, start, cut)]
        self.mine[worker] = without(rows, part)
        if not self.ledger.missing(worker, part):
            self.ledger.claim(worker, part, 0.0)
            self.slots.append((worker, part))

    @rule(drops=st.booleans(), wear=st.sampled_from([0, 1]))
    def step(self, drops: bool, wear: int) -> None:
        for worker, ranges in self.slots:
            if drops:
                self.ledger.drop(worker, ranges, "dropped", wear)
            else:
                self.ledger.apply(worker, ranges)
                self.applied.update(positions(ranges))
        self.slots = []

    @rule(worker=WORKERS, forgets=st.booleans())
    def die(self, worker: str, forgets: bool) -> None:
        self.ledger.release(worker, "lost")
        if forgets:
            self.mine[worker] = []

    @rule(worker=WORKERS, keeps=st.integers(0, 3))
    def hand_back(self, worker: str, keeps: int) -> None:
        self.mine[worker] = self.mine[worker][:keeps]
        self.ledger.keep(worker, self.mine[worker], "handed back", 0.0)

    @rule()
    def restart(self) -> None:
        again = Ledger.restored(json.loads(json.dumps(self.ledger.dump())))
        assert again == self.ledger
        self.ledger = again

    @invariant()
    def nothing_is_twice_and_nothing_is_nowhere(self) -> None:
        ledger = self.ledger
        books = [*ledger.free, *(h for own in (*ledger.leased.values(), *ledger.waiting.values()) for h in own)]
        somewhere = Counter(positions([held.range for held in books] + ledger.aside))
        somewhere += self.applied
        begun = Counter(divmod(i, ledger.length) for i in range(ledger.position))
        assert somewhere == begun, "every position that is not fresh is in one place"
        assert ledger.applied == self.applied.total()
        whole = Counter(number for number, _ in [*self.applied, *positions(ledger.aside)])
        assert ledger.passes == sum(count == ledger.length for count in whole.values())


TestChurn = Churn.TestCase
TestChurn.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_came_back_is_handed_out_first() -> None:
    ledger = Ledger(10)
    assert lease(ledger, "a", 4) == [(0, 0, 4)]
    assert lease(ledger, "b", 4) == [(0, 4, 8)]
    ledger.release("a", "lost")
    assert lease(ledger, "b", 6) == [(0, 0, 4), (0, 8, 10)]
    assert ledger.free == []
    assert lease(ledger, "b", 1, upto=0) == []
    assert ledger.out(0, but="b") == 0
    assert ledger.out(0, but="a") == 10


def test_what_was_handed_out_again_belongs_to_its_new_holder() -> None:
    ledger = Ledger(10)
    lease(ledger, "a", 4)
    ledger.release("a", "lost")
    assert ledger.missing("a", [(0, 0, 4)]) == [], "nobody has taken it yet"
    lease(ledger, "b", 2)
    assert ledger.missing("a", [(0, 0, 4)]) == [(0, 0, 2)]
    done(ledger, "b", [(0, 0, 2)])
    assert ledger.missing("a", [(0, 0, 4)]) == [(0, 0, 2)]
    assert ledger.missing("a", [(0, 2, 5)]) == [(0, 4, 5), (0, 2, 5)], "nor what nobody has been given"
    done(ledger, "a", [(0, 2, 4)])
    assert ledger.applied == 4


def test_a_pass_is_complete_when_all_of_it_is_applied_in_whatever_order() -> None:
    ledger = Ledger(6)
    first, second = lease(ledger, "a", 6), lease(ledger, "b", 6)
    done(ledger, "b", second)
    assert (ledger.passes, ledger.booked) == (1, {})
    ledger.claim("a", first, 0.0)
    assert ledger.passes == 1, "accepted is not applied"
    ledger.apply("a", first)
    assert ledger.passes == 2


def test_what_is_always_in_vain_is_set_aside() -> None:
    ledger = Ledger(4)
    for _ in range(2):
        ranges = lease(ledger, "a", 1)
        assert ranges == [(0, 0, 1)]
        ledger.give_back("a", ranges, "not_finite", WORN_OUT // 2)
    assert lease(ledger, "a", 4, upto=0) == [(0, 1, 4)]
    done(ledger, "a", [(0, 1, 4)])
    assert (ledger.passes, ledger.aside, ledger.returned["not_finite"]) == (1, [(0, 0, 1)], 2)


def test_only_what_holds_up_a_pass_expires() -> None:
    ledger = Ledger(4)
    lease(ledger, "a", 2)
    assert ledger.expire(lambda worker, held: True, "late") == [], "there is fresh work"
    lease(ledger, "b", 4)
    assert ledger.expire(lambda worker, held: worker == "a", "late") == [("a", [(0, 0, 2)])]
    assert lease(ledger, "b", 9, upto=0) == [(0, 0, 2)]


def test_who_had_it_before_is_known() -> None:
    ledger = Ledger(8)
    lease(ledger, "a", 4)
    ledger.release("a", "lost")
    unit = ledger.units(8, 1)[0]
    assert (unit.samples_of("a"), unit.samples_of("b"), unit.oldest, unit.size) == (4, 0, 0, 8)


def test_a_stream_of_an_older_version_goes_on_where_it_was() -> None:
    ledger = Ledger.restored([10, 23])
    assert (ledger.passes, ledger.booked, ledger.newest) == (2, {2: 3}, 2)
    assert lease(ledger, "a", 9) == [(2, 3, 10), (3, 0, 2)]


def test_ranges() -> None:
    assert merged([(0, 4, 6), (0, 0, 4), (1, 0, 1), (0, 5, 7)]) == [(0, 0, 7), (1, 0, 1)]
    assert without([(0, 0, 10)], [(0, 2, 3), (0, 5, 20), (1, 0, 9)]) == [(0, 0, 2), (0, 3, 5)]
    assert size([(0, 0, 3), (2, 5, 6)]) == 4
    for row in ([0, 1], [0, 3, 3], [0, -1, 3], [-1, 0, 3], [0, 0, 11], "abc", None, [0, 0.0, 3], [True, 0, "1"]):
        with pytest.raises(ValueError, match="expected"):
            read(row, 10)
    assert Held((0, 0, 4)).part((0, 1, 2)).range == (0, 1, 2)
