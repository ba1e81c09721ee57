"""zeno from a script: the embedded server imports the owner's function, and judges by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trusting
from models import Net, loader, state, trainer

from lightning_async import AsyncWANStrategy
from lightning_async.errors import ConfigError

ZENO = "zeno(rho=0.2)"


def test_an_embedded_server_judges_by_the_owners_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one whose updates point the other way everything is dropped; by the right one it is not (tests/server)."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    torch.manual_seed(0)
    module = Net()
    start = state(module)
    strategy = AsyncWANStrategy(aggregation=ZENO, validation=trusting.opposite, local_steps=2, data="own")
    trainer(strategy).fit(module, loader())
    (worker,) = strategy.report()["workers"].values()
    assert strategy.report()["version"] == 0
    assert worker["accepted"] == worker["reputation"]["rounds"] == 6
    assert worker["reputation"]["used"] == 0.0
    assert all(torch.equal(value, start[key]) for key, value in state(module).items())


def test_a_function_that_another_process_cannot_import_is_refused() -> None:
    assert AsyncWANStrategy(aggregation=ZENO, validation=trusting.update)._given.validation == "trusting:update"
    assert AsyncWANStrategy(aggregation=ZENO, validation="a.b:c")._given.validation == "a.b:c"
    with pytest.raises(ConfigError, match="define it at the top of a module"):
        AsyncWANStrategy(aggregation=ZENO, validation=lambda tensors: tensors)
