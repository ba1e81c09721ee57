"""Policies and weights, against their formulas."""

from __future__ import annotations

import math

import pytest

from lightning_async.errors import ConfigError
from lightning_async.staleness import WEIGHTS, fixed, hinge, policy, polynomial, unbounded, weight


def test_bounds() -> None:
    assert fixed(3).bound == 3
    assert policy(7).spec == "fixed(bound=7)"
    assert policy("unbounded").bound == math.inf == unbounded().bound


@pytest.mark.parametrize("bound", [-1, 1.5, True, "3"])
def test_bounds_that_are_none(bound: object) -> None:
    with pytest.raises(ConfigError, match="staleness bound"):
        fixed(bound)  # type: ignore[arg-type]


def test_formulas() -> None:
    assert polynomial(0.5).of(3) == pytest.approx(0.5)
    assert [hinge(10.0, 4.0).of(s) for s in (0, 4, 5, 6)] == pytest.approx([1.0, 1.0, 1 / 11, 1 / 21])


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_begin_at_one_and_never_rise_and_never_vanish(name: str) -> None:
    values = [weight(name).of(s) for s in range(1000)]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0.0


@pytest.mark.parametrize("text", ["polynomial(a=0)", "polynomial(a=-1.0)", "hinge(a=0.0)", "hinge(b=-1.0)"])
def test_weights_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="number > 0"):
        weight(text)
