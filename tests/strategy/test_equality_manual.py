"""Equality with plain training where Lightning does not drive the optimizer: manual loops, scalers, closures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from models import SAMPLES, STEPS, Net, fit, furthest, sgd, state
from test_equality import MODES, compare, exponential
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import ExponentialLR

from lightning_async import AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.server import ServerThread


class Manual(Net):
    """A manual loop over one optimizer; `way` says how the step is made."""

    def __init__(self, way: str = "wrapped") -> None:
        super().__init__(lambda module: AdamW(module.parameters(), lr=0.02))
        self.automatic_optimization, self.way = False, way

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer = {
            "wrapped": self.optimizers,
            "closure": self.optimizers,
            "unwrapped": lambda: self.optimizers(use_pl_optimizer=False),
            "raw": lambda: self.trainer.optimizers[0],
        }[self.way]()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            return loss

        if self.way == "closure":
            optimizer.step(closure=closure)
        else:
            closure()
            optimizer.step()
        return self.loss(batch)


class Pair(Net):
    """Two optimizers, each with clipping and a scheduler of its own, in turns."""

    def __init__(self) -> None:
        super().__init__(self.pair)
        self.automatic_optimization = False

    @staticmethod
    def pair(module: Any) -> Any:
        optimizers = [sgd(module.net[0], momentum=0.9), AdamW(module.net[2].parameters(), lr=0.02)]
        return optimizers, [ExponentialLR(optimizer, 0.9) for optimizer in optimizers]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, scheduler in zip(self.optimizers(), self.lr_schedulers(), strict=True):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            scheduler.step()


@MODES
@pytest.mark.parametrize("way", ["wrapped", "closure", "unwrapped", "raw"])
def test_manual_optimization(submit: str, way: str) -> None:
    compare(submit, lambda: Manual(way))


def test_two_optimizers_in_gradient_mode() -> None:
    compare("gradient", Pair, steps=4 * STEPS)


def test_two_optimizers_in_update_mode() -> None:
    """A round ends with the step of whichever optimizer completes it; both travel with it."""
    compare("update", Pair, steps=4 * STEPS)


def adamw(module: Any) -> Any:
    return AdamW(module.parameters(), lr=0.02)


def scaled(first: float) -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=first, growth_interval=4)
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


@MODES
def test_half_precision_with_a_scaler_that_skips_steps(submit: str) -> None:
    """2^24 overflows half precision in this network's gradients, so the first steps are skipped, and not submitted."""
    theirs, plain = fit(lambda: Net(adamw), plugins=scaled(2.0**24))
    with ServerThread(RunConfig(submit=submit, local_steps=1)) as server:
        ours, trainer = fit(lambda: Net(adamw), AsyncWANStrategy(server.address), plugins=scaled(2.0**24))
    scale = trainer.precision_plugin.scaler.get_scale()
    assert scale == plain.precision_plugin.scaler.get_scale()
    steps = server.coordinator.run.steps_total
    assert 0 < steps < 2 * STEPS == trainer.global_step
    difference = furthest(state(theirs), state(ours))
    assert difference == 0.0 if submit == "gradient" else difference <= 1e-6


def lbfgs(module: Any) -> Any:
    return torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=4)


def test_lbfgs_in_update_mode() -> None:
    compare("update", lambda: Net(lbfgs))


def test_lbfgs_in_gradient_mode_is_refused() -> None:
    with (
        ServerThread(RunConfig(submit="gradient", local_steps=1)) as server,
        pytest.raises(ConfigError, match=r'LBFGS.*submit="update"'),
    ):
        fit(lambda: Net(lbfgs), AsyncWANStrategy(server.address))


@MODES
def test_double_precision(submit: str) -> None:
    """Shared are float32 parameters, so the run is as exact as they are."""
    theirs, _ = fit(lambda: Net(exponential), precision="64-true")
    with ServerThread(RunConfig(submit=submit, local_steps=1)) as server:
        ours, _ = fit(lambda: Net(exponential), AsyncWANStrategy(server.address), precision="64-true")
    assert next(ours.parameters()).dtype == torch.float64
    assert server.coordinator.run.steps_total == 2 * STEPS
    assert furthest(state(theirs), state(ours)) <= 1e-6


class Sometimes(Net):
    """Every second batch has no gradient."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return super().training_step(batch, batch_idx) if batch_idx % 2 else None


@MODES
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_steps_without_gradients_are_not_counted(submit: str) -> None:
    compare(submit, Sometimes, steps=2 * (SAMPLES // 16))
