"""What every test of the worker gets: nobody is in a hurry to leave."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_haste(unhurried: None) -> None: ...
