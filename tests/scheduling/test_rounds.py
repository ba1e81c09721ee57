"""Round sizes: the same for everybody, or fitted to speeds and links; a pure rule, computed by hand here."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_async.errors import ConfigError
from lightning_async.scheduling import Sizing, Speed, auto, sizing


def speeds(steps_s: list[float], exchange_s: float = 0.01) -> list[Speed]:
    return [Speed().after(step_s, exchange_s) for step_s in steps_s]


def settled(rule: Sizing, mine: Speed, live: list[Speed]) -> int:
    """Where a worker's size ends when nothing changes."""
    assert rule.of is not None
    size = rule.first
    for _ in range(20):
        size = rule.of(size, mine, live)
    return size


def sizes(rule: Sizing, live: list[Speed]) -> list[int]:
    return [settled(rule, mine, live) for mine in live]


def test_a_number_is_that_number_for_everybody() -> None:
    for value in (7, "7"):
        assert (sizing(value).spec, sizing(value).first, sizing(value).most, sizing(value).of) == (7, 7, 7, None)
        assert sizing(value).most_claimed == 140


def test_equal_workers_have_the_steps_that_were_asked_for() -> None:
    assert sizes(auto(steps=16), speeds([0.5] * 4)) == [16] * 4


def test_steps_fall_with_speed_so_that_rounds_last_alike() -> None:
    live = speeds([0.5, 1.0, 10 / 3])
    found = sizes(auto(steps=16), live)
    lasts = [n * speed.step_s.value for n, speed in zip(found, live, strict=True)]  # type: ignore[operator]
    assert found[1] == 16
    assert max(lasts) / min(lasts) < 1.3


def test_where_the_slowest_cannot_do_less_than_one_step_the_others_do_more() -> None:
    """40 s a step: T = 40 / 1.5 = 26.7 s, so that 1.5 rounds of the others fall into one of it."""
    assert sizes(auto(steps=16, staleness=1.5), speeds([1.0, 1.0, 40.0])) == pytest.approx([27, 27, 1], rel=0.26)
    assert sizes(auto(steps=16, most=24), speeds([1.0, 1.0, 40.0])) == [24, 24, 1]


def test_a_round_lasts_as_long_as_an_exchange_of_its_worker() -> None:
    thin, fast = Speed().after(0.1, 8.0), Speed().after(0.1, 0.05)
    found = sizes(auto(steps=16), [thin, fast, fast])
    assert found[0] == pytest.approx(1.2 * 80, rel=0.26)
    assert found[1] == pytest.approx(8.0 / 1.5 / 0.1, rel=0.26)


def test_a_minority_cannot_shrink_or_stretch_the_others_beyond_the_bounds() -> None:
    honest = speeds([1.0] * 5)
    for lie in (1e-9, 1e9):
        found = [settled(auto(steps=16, most=64), mine, [*honest, *speeds([lie] * 2)]) for mine in honest]
        assert all(16 <= size <= 64 for size in found)
        slow = Speed().after(4.0, 0.01)
        assert settled(auto(steps=16, most=64), slow, [*honest, slow, *speeds([lie] * 2)]) <= 1.26 * 64 / 4


def test_nothing_is_known_at_first() -> None:
    rule = auto()
    assert rule.of is not None
    assert rule.first == 1
    assert rule.of(4, Speed(), speeds([1.0])) == 4
    assert Speed().after(0.0, -1.0) == Speed()


numbers = st.floats(allow_nan=False, allow_infinity=False)  # what a message may hold


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8), st.integers(1, 200))
def test_sizes_stay_in_range_and_move_by_half_or_double(pairs: list[tuple[float, float]], size: int) -> None:
    rule = auto(steps=16, most=200)
    live = [Speed().after(*pair) for pair in pairs]
    assert rule.of is not None
    after = rule.of(size, live[0], live)
    assert 1 <= after <= 200 or after == size
    assert size // 2 <= after <= 2 * size


def test_a_small_difference_changes_nothing() -> None:
    rule = auto(steps=16)
    assert rule.of is not None
    assert rule.of(14, speeds([1.0])[0], speeds([1.0])) == 14
    assert rule.of(10, speeds([1.0])[0], speeds([1.0])) == 16


@pytest.mark.parametrize(("told", "taken"), [(0, 0), (5, 5), (-3, 1), (2**62, 128)])
def test_what_the_server_says_is_held_within_bounds(told: int, taken: int) -> None:
    assert auto(most=128).told(told) == taken
    assert sizing(16).told(told) == 0


def test_speeds_are_written_and_read() -> None:
    speed = Speed().after(1.5, 0.25)
    assert Speed.read(speed.as_dict()) == speed
    assert Speed.read(Speed().as_dict()) == Speed()


@pytest.mark.parametrize("spec", ["auto", "auto()", "auto(steps=16)", auto()])
def test_the_text_form(spec: Any) -> None:
    assert sizing(spec).spec == "auto(steps=16, most=128, staleness=1.5)"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "local_steps: got 0, expected an integer >= 1"),
        (True, "got True"),
        ("sometimes", "local_steps: got 'sometimes', expected an integer >= 1, or \"auto\""),
        ("1.5", "local_steps: got '1.5'"),
        ("auto(steps=0)", "steps: got 0"),
        ("auto(steps=16, most=8)", "most: got 8, expected at least steps, 16"),
        ("auto(staleness=0)", "staleness: got 0, expected a finite number > 0"),
        ("auto(pace=1)", "unexpected keyword"),
    ],
)
def test_what_is_no_size_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        sizing(value)
    with pytest.raises(ConfigError):
        auto(staleness=math.nan)
