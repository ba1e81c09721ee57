"""Checks of arguments: what passes, what does not, and what the error says."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_async.arguments import is_whole, number, whole
from lightning_async.errors import ConfigError

NO_NUMBERS = ["1", None, True, math.nan, math.inf, -math.inf, 1j, [1.0]]


@pytest.mark.parametrize("value", [2, 3, 10**400])
def test_a_whole_number_passes(value: int) -> None:
    whole("window", value, 2)
    assert is_whole(value, 2)


@pytest.mark.parametrize("value", [1, -5, 2.0, True, "2", None])
def test_what_is_no_whole_number_or_too_small_is_refused_with_what_was_expected(value: Any) -> None:
    assert not is_whole(value, 2)
    with pytest.raises(ConfigError, match=r"^window: got .*, expected an integer >= 2$"):
        whole("window", value, 2)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^k: got .*, expected a finite number$"):
        number("k", value)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        ({"least": 0, "below": 1}, [0, 0.5, 0.999], [-1e-9, 1, 2.0], ">= 0 and < 1"),
        ({"above": 0, "most": 1}, [1e-300, 1], [0, 0.0, 1.001], "> 0 and <= 1"),
        ({"above": 0}, [5e-324, 10**400], [0, -1], "> 0"),
        ({}, [-(10**400), 0], [], ""),
    ],
)
def test_bounds_are_kept_and_named(bounds: dict[str, float], inside: list[Any], outside: list[Any], words: str) -> None:
    for value in inside:
        number("share", value, **bounds)
    for value in outside:
        with pytest.raises(ConfigError, match=f"expected a finite number {words}$"):
            number("share", value, **bounds)
