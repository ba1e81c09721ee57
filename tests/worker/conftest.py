"""What tests of the worker get: nobody is in a hurry to leave, and towns with a large model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from town import ROWS, Town


@pytest.fixture(autouse=True)
def _no_haste(unhurried: None) -> None: ...


@pytest.fixture
def town() -> Iterator[Callable[..., Town]]:
    """Makes a town whose model is large and whose run has begun, after `first` was done with it."""
    with contextlib.ExitStack() as stack:

        def made(*args: Any, first: Callable[[Town], None] = lambda place: None, **options: Any) -> Town:
            place = stack.enter_context(contextlib.closing(Town(*args, rows=ROWS, **options)))
            first(place)
            place.begin()
            return place

        yield made
