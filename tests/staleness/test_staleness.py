"""Policies and weights, against their formulas."""

from __future__ import annotations

import math

import pytest

from lightning_async.errors import ConfigError
from lightning_async.staleness import (
    WEIGHTS,
    cosine_gate,
    exponential,
    fixed,
    hinge,
    policy,
    polynomial,
    product,
    unbounded,
    weight,
)


def test_bounds() -> None:
    assert fixed(3).bound == 3
    assert policy(7).spec == "fixed(bound=7)"
    assert policy("unbounded").bound == math.inf == unbounded().bound
    assert policy("7") == policy(7)


@pytest.mark.parametrize("bound", [-1, 1.5, True, "3"])
def test_bounds_that_are_none(bound: object) -> None:
    with pytest.raises(ConfigError, match="staleness bound"):
        fixed(bound)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["adaptive(floor=-1.0)", "adaptive(deviations=True)", "adaptive(ceiling=1e999)",
                                  "adaptive(ceiling=1.0)", "adaptive(floor=0.1, ceiling=0.5)"])  # fmt: skip
def test_adaptive_bounds_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"staleness (floor|ceiling|deviations): got"):
        policy(text)


def test_formulas() -> None:
    assert polynomial(0.5).of(3) == pytest.approx(0.5)
    assert [hinge(10.0, 4.0).of(s) for s in (0, 4, 5, 6)] == pytest.approx([1.0, 1.0, 1 / 11, 1 / 21])
    assert exponential(0.5).of(4) == pytest.approx(math.exp(-2.0))
    gate = cosine_gate(0.0, 8.0)
    assert [gate.of(s) for s in (0, 2, 4, 6)] == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    assert gate.of(8) == gate.of(900) == 1e-6
    assert cosine_gate(0.3, 8.0).of(4) == pytest.approx(0.5 * math.exp(-1.2))
    assert product(polynomial(1.0), hinge(), gate).of(4) == pytest.approx(0.2 * 0.5)
    assert weight("product(exponential(alpha=1.0), exponential(alpha=2.0))").of(1) == pytest.approx(math.exp(-3.0))


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_begin_at_one_and_never_rise_and_never_vanish(name: str) -> None:
    values = [weight(name).of(s) for s in range(1000)]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0.0


@pytest.mark.parametrize(
    "text",
    [
        *("polynomial(a=0)", "polynomial(a=-1.0)", "hinge(a=0.0)", "hinge(b=-1.0)", "polynomial(a=1e999)"),
        *("exponential(alpha=0.0)", "cosine_gate(cutoff=0.0)", "cosine_gate(alpha=-1.0)"),
    ],
)
def test_weights_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"number >=? 0"):
        weight(text)
