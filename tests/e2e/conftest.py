"""What every test with real processes gets: three times as long as others before pytest ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

LIMIT_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(LIMIT_S))
