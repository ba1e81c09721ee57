"""Waiting in tests: for a condition that is stated, up to a time that only a hung program reaches.

Rule for every test: a machine may stand still for many seconds at any place. So nothing is true "after a moment", a
bound on time is many times what is usual, and it is there to end a test that hangs, not to measure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
ENOUGH_S = 60.0  # for what takes a second at most
POLL_S = 0.02


def eventually(ready: Callable[[], T], timeout_s: float = ENOUGH_S, what: str = "") -> T:
    """The first true value of `ready()`, which is asked once more when the time is over; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        late = time.monotonic() >= deadline
        if value := ready():
            return value
        assert not late, f"not within {timeout_s:.0f} s: {what or ready}"
        time.sleep(POLL_S)
