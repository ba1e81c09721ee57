"""What every test of the strategy gets: Lightning's advice about small data is quiet, its global state is checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from eventually import ENOUGH_S

LIGHTNINGS_OWN = (
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",  # of torch, about Lightning's CombinedLoader
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for line in LIGHTNINGS_OWN:
                item.add_marker(pytest.mark.filterwarnings(line), append=False)


@pytest.fixture(autouse=True)
def _no_progress_bar_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """tqdm starts one for the bar of the learning rate finder, and keeps it."""
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)


@pytest.fixture(autouse=True)
def _no_haste(unhurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a fit that failed leave before the server has heard it."""
    monkeypatch.setattr("lightning_async.strategy.session.GOODBYE_S", ENOUGH_S)
    monkeypatch.setattr("lightning_async.strategy.session.HASTY_S", ENOUGH_S)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Lightning changes process-wide state; the next test finds it as this one did."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    after = torch.get_default_dtype(), torch.is_grad_enabled()
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)
    rank_zero_only.rank = 0
    assert after == (dtype, True)
