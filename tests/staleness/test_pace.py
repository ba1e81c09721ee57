"""Paces and adaptive bounds, against hand-made times."""

from __future__ import annotations

import math

import pytest

from lightning_async.staleness import Pace, Rate, Sight, adaptive, fixed, policy


def steady(interval_s: float, live: int = 4, versions: int = 200) -> Rate:
    """The rate of a run that made a version every `interval_s`."""
    rate = Rate()
    for i in range(versions):
        rate = rate.after(i * interval_s, live)
    return rate


def worker(round_s: float, rate: Rate, interval_s: float, live: int = 4, rounds: int = 60) -> Pace:
    """The pace of a worker whose rounds last `round_s` in that run."""
    pace = Pace().begun(0.0, 0)
    for i in range(1, rounds + 1):
        pace = pace.after(i * round_s, int(i * round_s / interval_s), rate, live)
    return pace


def bound(pace: Pace, rate: Rate, live: int = 4, now: float = 1e6, text: str = "adaptive(floor=0.0)") -> float:
    return policy(text).of(Sight(pace, rate, live, now))


def test_the_bound_is_what_is_made_during_a_round_and_its_deviations() -> None:
    rate = steady(0.5)
    for round_s, versions in ((1.0, 2), (10.0, 20), (100.0, 200)):
        assert versions <= bound(worker(round_s, rate, 0.5), rate) <= versions + 1
    assert bound(worker(10.0, steady(0.1), 0.1), steady(0.1)) == pytest.approx(100, abs=2)


def test_deviations_widen_it() -> None:
    rate, pace = steady(1.0), Pace().begun(0.0, 0)
    now = version = 0
    for i in range(100):
        took = 5 if i % 2 else 15
        now, version = now + took, version + took
        pace = pace.after(float(now), version, rate, 4)
    assert pace.round_s.value == pytest.approx(10.0, rel=0.15)
    assert pace.error.value == pytest.approx(5.0, rel=0.2)
    assert 15 < bound(pace, rate) == math.ceil(pace.round_s.value + 4 * pace.error.value)
    assert bound(pace, rate, text="adaptive(deviations=0.0, floor=0.0)") == math.ceil(pace.round_s.value)


def test_floor_and_ceiling_count_live_workers() -> None:
    rate = steady(1.0)
    fast, slow = worker(0.01, rate, 1.0), worker(1e5, rate, 1.0)
    for live in (1, 4, 32):
        assert bound(fast, rate, live, text="adaptive()") == 2 * live
        assert bound(slow, rate, live, text="adaptive()") == 200 * live
    assert bound(fast, rate, 4, text="adaptive(floor=0.0)") == 1, "an update may be overtaken by one"


def test_more_workers_count_at_once_and_fewer_do_not() -> None:
    rate = steady(1.0, live=4)
    pace = worker(10.0, rate, 1.0)
    ten = bound(pace, rate, 4)
    assert bound(pace, rate, 8) == pytest.approx(2 * ten, abs=2)
    assert bound(pace, rate, 2) == ten


def test_the_rate_follows_the_run() -> None:
    rate = steady(1.0)
    assert rate.expected(10.0, 4) == pytest.approx(10.0)
    for i in range(200):
        rate = rate.after(200 + i * 0.25, 4)
    assert rate.expected(10.0, 4) == pytest.approx(40.0, rel=0.05)
    assert rate.paused().after(1e9, 4).expected(10.0, 4) == rate.expected(10.0, 4)


def test_what_is_not_known_yet_is_accepted_up_to_the_ceiling() -> None:
    new = Pace().begun(100.0, 0)
    assert bound(new, Rate()) == bound(new, Rate().after(1.0, 4)) == 800
    assert bound(Pace(), steady(1.0)) == 800
    assert bound(new, steady(1.0), now=110.0) == 30, "10 versions since it came, 4 times half of that"
    instant = Rate().after(1.0, 4).after(1.0, 4)
    assert bound(new, instant) == 800
    assert math.isfinite(new.after(101.0, 3, instant, 4).error.value or 0.0)


def test_absence_is_no_round() -> None:
    rate = steady(1.0)
    pace = worker(10.0, rate, 1.0)
    back = pace.away().begun(1e6, 10**6)
    assert (back.round_s, back.error) == (pace.round_s, pace.error)
    assert back.after(1e6 + 10.0, 10**6 + 10, rate, 4).round_s.value == pytest.approx(10.0)
    assert pace.away().after(5.0, 3, rate, 4).since == 5.0


def test_values_and_back() -> None:
    rate = steady(1.0)
    pace = worker(3.0, rate, 1.0)
    assert Pace.read(pace.as_dict()) == pace
    assert Rate.read(rate.as_dict()) == rate
    assert Pace.read(Pace().as_dict()) == Pace()


def test_a_fixed_bound_is_fixed() -> None:
    sight = Sight(Pace(), Rate(), 9, 1.0)
    assert fixed(3).of(sight) == 3
    assert policy("unbounded").of(sight) == math.inf
    assert adaptive().bound == math.inf
