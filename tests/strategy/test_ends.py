"""How a fit ends: the run is over, the server stops, the training diverges, an exception is raised."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from models import STEPS, Net, fit, furthest, state
from test_callbacks import published
from torch import Tensor

from lightning_async import AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.errors import CallerError
from lightning_async.server import ServerThread


def test_the_runs_steps_end_the_fit() -> None:
    with ServerThread(RunConfig(local_steps=2, total_steps=7)) as server:
        module, trainer = fit(Net, AsyncWANStrategy(server.address), max_epochs=50)
        run = server.coordinator.run
        assert run.steps_total == 8
        assert run.ended
        assert 8 <= trainer.global_step <= 8 + 4, "a round is under way while the news travels"
        assert furthest(published(server, module), state(module)) == 0.0


def test_a_server_that_stops_ends_the_fit_with_the_model_as_published() -> None:
    class Stopping(Net):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.trainer.global_step == STEPS:
                closing.start()

    with ServerThread(RunConfig(local_steps=1)) as server:
        closing = threading.Thread(target=server.close)
        module, trainer = fit(Stopping, AsyncWANStrategy(server.address), max_epochs=100_000)
        closing.join()
        assert STEPS <= trainer.global_step < STEPS * 100_000
        assert furthest(published(server, module), state(module)) == 0.0


class Diverging(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * float("nan")


@pytest.mark.parametrize("submit", ["update", "gradient"])
def test_training_that_diverges_is_stopped_and_harms_nobody(submit: str) -> None:
    with ServerThread(RunConfig(submit=submit, local_steps=1)) as server:
        module, _ = fit(Net, AsyncWANStrategy(server.address), max_epochs=1)
        before = published(server, module)
        with pytest.raises(CallerError, match=r"rounds in a row held NaN or infinity.*learning rate"):
            fit(Diverging, AsyncWANStrategy(server.address))
        assert furthest(published(server, module), before) == 0.0
        assert not server.coordinator.run.members.workers()


@pytest.mark.parametrize(
    "hook", ["on_fit_start", "on_train_start", "training_step", "on_train_epoch_end", "on_train_end"]
)
def test_an_exception_leaves_nothing_behind(hook: str) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError(hook)

    made: list[Any] = []

    def configure(module: Any) -> Any:
        made.append(torch.optim.SGD(module.parameters(), lr=0.1))
        return made[0]

    module = Net(configure)
    setattr(module, hook, broken)
    with ServerThread(RunConfig(local_steps=4)) as server:
        with pytest.raises(ZeroDivisionError, match=hook):
            fit(lambda: module, AsyncWANStrategy(server.address))
        assert not server.coordinator.run.members.workers()
    assert "step" not in vars(made[0])
