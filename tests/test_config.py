"""A run's configuration: what is refused, and how it is compared."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lightning_async.config import RunConfig, contradictions, read_config
from lightning_async.errors import ConfigError


def test_plain_values_there_and_back() -> None:
    config = RunConfig(local_steps=4, quorum="all", total_steps=100)
    assert read_config(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize(
    "values",
    [
        {"submit": "both"},
        {"local_steps": 0},
        {"local_steps": 1.5},
        {"local_steps": True},
        {"quorum": 0},
        {"quorum": "some"},
        {"workers": 0},
        {"total_steps": 0},
        {"grace_s": -1.0},
        {"grace_s": math.nan},
        {"grace_s": math.inf},
        {"beat_s": 0.0},
        {"beat_s": 30.0},
        {"patience_s": math.inf},
        {"seed": "x"},
        {"follow": "yes"},
        {"compression": 8},
        {"outer": None},
        {"submit": "gradient", "local_steps": 16},
    ],
    ids=str,
)
def test_values_that_cannot_be_used_are_named(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig(**values)
    assert any(name in str(caught.value) for name in ("patience_s", *values))
    assert "got" in str(caught.value)


def test_unknown_names_and_wrong_types_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown configuration colour; known: aggregation"):
        read_config({"colour": 1})
    with pytest.raises(ConfigError, match="wrong type"):
        read_config({"grace_s": "x"})


def test_contradictions_name_both_values_and_only_what_differs() -> None:
    run = RunConfig(local_steps=4, outer="sgd(lr=0.5)")
    assert contradictions(run, {}) == []
    assert contradictions(run, {"local_steps": "4", "unheard_of": "1"}) == []
    assert contradictions(run, {"local_steps": "8", "outer": "'sgd(lr=1.0)'"}) == [
        "local_steps: this worker was given 8, the run has 4",
        "outer: this worker was given 'sgd(lr=1.0)', the run has 'sgd(lr=0.5)'",
    ]


@pytest.mark.parametrize("claim", ["30", "30.0", "3e1"])
def test_a_number_is_the_same_however_it_is_written(claim: str) -> None:
    for value in (30, 30.0):
        assert contradictions(RunConfig(patience_s=value), {"patience_s": claim}) == []


@pytest.mark.parametrize(
    ("values", "claims"),
    [
        ({"patience_s": 30.0}, {"patience_s": "31"}),
        ({"patience_s": 30.0}, {"patience_s": "'30'"}),
        ({"follow": True}, {"follow": "1"}),
        ({"epochs": None}, {"epochs": "0"}),
        ({"grace_s": "auto"}, {"grace_s": "0.0"}),
        ({"grace_s": 0.0}, {"grace_s": "'auto'"}),
        ({"grace_s": 0.0}, {"grace_s": "nan"}),
    ],
)
def test_another_value_stays_another(values: dict[str, Any], claims: dict[str, str]) -> None:
    assert len(contradictions(RunConfig(**values), claims)) == 1
