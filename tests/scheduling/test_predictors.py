"""Predictors: what they expect follows from what they saw, by the formula."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_async.errors import ConfigError
from lightning_async.scheduling import PREDICTORS, Predictor, ewma, least_squares, predictor
from lightning_async.scheduling.predictors import line

SEEN = st.lists(st.tuples(st.integers(1, 10**6), st.floats(0.0, 1e5)), min_size=1, max_size=80)


def after(rule: Predictor, seen: list[tuple[int, float]]) -> list[object]:
    state: list[object] = []
    for samples, seconds in seen:
        state = rule.observe(state, samples, seconds)
    return state


@pytest.mark.parametrize("name", PREDICTORS)
@given(seen=SEEN, samples=st.integers(1, 10**7))
def test_every_one_is_finite_grows_with_the_work_and_survives_json(
    name: str, seen: list[tuple[int, float]], samples: int
) -> None:
    rule = predictor(name)
    assert rule.seconds([], samples) is None
    state = after(rule, seen)
    seconds = rule.seconds(state, samples)
    assert seconds is not None
    assert 0.0 <= seconds < math.inf
    assert (rule.seconds(state, 2 * samples) or 0.0) >= seconds
    assert rule.seconds(json.loads(json.dumps(state)), samples) == seconds
    assert len(state) <= 64


@pytest.mark.parametrize("name", PREDICTORS)
def test_every_one_learns_a_steady_worker_and_one_that_becomes_slower(name: str) -> None:
    rule = predictor(name)
    steady = [(100, 2.0)] * 30
    assert rule.seconds(after(rule, steady), 300) == pytest.approx(6.0)
    assert rule.seconds(after(rule, steady + [(100, 4.0)] * 70), 100) == pytest.approx(4.0, rel=1e-4)


def test_ewma_is_its_formula() -> None:
    state = after(ewma(weight=0.5), [(10, 1.0), (10, 3.0)])
    assert ewma(weight=0.5).seconds(state, 100) == pytest.approx(100 * (0.1 + 0.5 * (0.3 - 0.1)))


def test_least_squares_finds_what_is_fixed_and_what_grows() -> None:
    rule = least_squares()
    state = after(rule, [(n, 1.5 + 0.02 * n) for n in (10, 50, 20, 200)])
    assert rule.seconds(state, 1000) == pytest.approx(21.5)
    proportional = ewma().seconds(after(ewma(), [(n, 1.5 + 0.02 * n) for n in (10, 50, 20, 200)]), 1000)
    assert proportional is not None
    assert abs(proportional - 21.5) > 10, "which an average of seconds per sample does not"


@given(st.lists(st.tuples(st.floats(1.0, 1e3), st.floats(0.0, 1e3)), min_size=2, max_size=20))
def test_the_line_is_the_best_of_those_that_do_not_fall_and_begin_at_zero_or_above(
    points: list[tuple[float, float]],
) -> None:
    def error(a: float, b: float) -> float:
        return math.fsum((y - a - b * x) ** 2 for x, y in points)

    a, b = line(points)
    assert a >= 0
    assert b >= 0
    best = error(a, b)
    high = max(y for _, y in points) + 1.0
    for other in np.linspace(0.0, high, 12):
        for slope in np.linspace(0.0, high, 12):
            assert best <= error(float(other), float(slope)) * (1 + 1e-6) + 1e-6


@pytest.mark.parametrize("text", ["ewma(weight=0)", "ewma(weight=1.5)", "least_squares(window=1)", "ewma(weight=True)"])
def test_what_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        predictor(text)
