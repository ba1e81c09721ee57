"""How a fit ends: the run is over, the server stops, the training diverges, an exception is raised."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from eventually import ENOUGH_S
from lightning.pytorch import Callback
from models import STEPS, Net, fit, furthest, state
from test_callbacks import published
from torch import Tensor

from lightning_async import AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.errors import CallerError
from lightning_async.server import ServerThread
from lightning_async.telemetry import Memory
from lightning_async.telemetry.events import Accepted


def test_the_runs_steps_end_the_fit() -> None:
    with ServerThread(RunConfig(local_steps=2, total_steps=7)) as server:
        module, trainer = fit(Net, AsyncWANStrategy(server.address), max_epochs=50)
        run = server.coordinator.run
        assert run.steps_total == 8
        assert run.ended
        assert 8 <= trainer.global_step <= 8 + 4, "a round is under way while the news travels"
        assert furthest(published(server, module), state(module)) == 0.0


def test_a_server_that_stops_ends_the_fit_with_the_model_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_async.server.service.GOODBYE_S", ENOUGH_S)

    class Stopping(Net):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.trainer.global_step == STEPS:
                closing.start()

    with ServerThread(RunConfig(local_steps=1)) as server:
        closing = threading.Thread(target=server.close, daemon=True)
        module, trainer = fit(Stopping, AsyncWANStrategy(server.address), max_epochs=100_000)
        closing.join()
        assert STEPS <= trainer.global_step < STEPS * 100_000
        assert furthest(published(server, module), state(module)) == 0.0


@pytest.mark.parametrize("outer", ["sgd(lr=1.0)", "nesterov(lr=0.7, momentum=0.9)"])
def test_the_last_to_leave_saves_what_still_waited_for_a_quorum(outer: str, tmp_path: Path) -> None:
    """Its own goodbye makes the server step, and that comes before the callbacks save."""

    class Saving(Callback):
        def on_train_end(self, trainer: Any, module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "end.ckpt")

    with ServerThread(RunConfig(local_steps=4, quorum=2, outer=outer)) as server:
        strategy = AsyncWANStrategy(server.address)
        module, _ = fit(Net, strategy, max_epochs=1, callbacks=[Saving()])
        run = server.coordinator.run
        assert (run.version, run.steps_total) == (1, STEPS)
        assert furthest(published(server, module), state(module)) == 0.0
        assert not [member for member in run.members if member.alive]
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert furthest(checkpoint["state_dict"], state(module)) == 0.0
    assert strategy.report()["version"] == 1


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss(batch)
        self.told.append(float(loss.detach()))
        self.manual_backward(loss)
        optimizer.step()


class Telling(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.told.append(float(loss.detach()))
        return loss


@pytest.mark.parametrize("submit", ["update", "gradient"])
@pytest.mark.parametrize("kind", [Telling, Manual])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_server_is_told_each_rounds_loss(submit: str, kind: type[Net], accumulate: int) -> None:
    """Before the step that ends the round, and as training_step gave it: accumulation divides a loss."""
    if kind is Manual and accumulate > 1:
        pytest.skip("Lightning leaves accumulation to the user there")
    kind.told, events = [], Memory()
    local_steps = 1 if submit == "gradient" else 2
    with ServerThread(RunConfig(submit=submit, local_steps=local_steps), sinks=[events]) as server:
        fit(kind, AsyncWANStrategy(server.address), max_epochs=1, accumulate_grad_batches=accumulate)
    batches = local_steps * accumulate
    rounds = [kind.told[i : i + batches] for i in range(0, STEPS, batches)]
    told = [event.loss for event in events.events if isinstance(event, Accepted)]
    assert told == pytest.approx([sum(losses) / len(losses) for losses in rounds])


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
