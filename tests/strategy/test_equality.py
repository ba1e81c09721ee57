"""One worker with local_steps=1 and outer SGD 1.0 is plain single-device training.

To the last bit in gradient mode, where the server's optimizer makes the same step; to 1e-6 in update mode, where the
parameters are rebuilt as base minus difference.
"""

from __future__ import annotations

from typing import Any

import pytest
from models import STEPS, Net, fit, furthest, sgd, state
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau

from lightning_async import AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.server import ServerThread

MODES = pytest.mark.parametrize("submit", ["gradient", "update"])


def compare(submit: str, module: Any, steps: int = 2 * STEPS, plain: Any = None, **options: Any) -> ServerThread:
    """Train both ways and hold the results together; the server, when it is over."""
    theirs, _ = fit(plain or module, **options)
    with ServerThread(RunConfig(submit=submit, local_steps=1)) as server:
        ours, _ = fit(module, AsyncWANStrategy(server.address), **options)
    assert server.coordinator.run.steps_total == steps
    difference = furthest(state(theirs), state(ours))
    assert difference == 0.0 if submit == "gradient" else difference <= 1e-6, difference
    assert furthest(state(theirs), state((plain or module)())) > 1e-3, "nothing was trained"
    return server


def scheduled(module: Any, optimizer: Any, scheduler: Any, **config: Any) -> dict[str, Any]:
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), **config}}


def exponential(module: Any) -> Any:
    return scheduled(module, AdamW(module.parameters(), lr=0.02), lambda o: ExponentialLR(o, 0.8), interval="step")


def plateau(module: Any) -> Any:
    make = lambda o: ReduceLROnPlateau(o, patience=0, threshold=10.0)  # noqa: E731
    return scheduled(module, sgd(module), make, interval="step", monitor="train_loss")


def one_cycle(module: Any) -> Any:
    steps = module.trainer.estimated_stepping_batches
    assert steps == 2 * STEPS
    make = lambda o: OneCycleLR(o, 0.1, total_steps=steps)  # noqa: E731
    return scheduled(module, SGD(module.parameters(), lr=0.01, momentum=0.9), make, interval="step")


def two_groups(module: Any) -> Any:
    groups = [
        {"params": module.net[0].parameters(), "lr": 0.05, "weight_decay": 0.1},
        {"params": module.net[2].parameters(), "lr": 0.2},
    ]
    return AdamW(groups, lr=0.1)


OPTIMIZERS = {
    "sgd": sgd,
    "momentum": lambda module: sgd(module, momentum=0.9, nesterov=True),
    "adamw, exponential": exponential,
    "plateau": plateau,
    "one cycle": one_cycle,
    "groups": two_groups,
}


@MODES
@pytest.mark.parametrize("configure", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_and_schedules(submit: str, configure: Any) -> None:
    compare(submit, lambda: Net(configure))


@MODES
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 0.05},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_clipping_and_precision(submit: str, options: dict[str, Any]) -> None:
    compare(submit, lambda: Net(exponential), **options)


@MODES
def test_accumulated_gradients(submit: str) -> None:
    compare(submit, lambda: Net(exponential), steps=2 * STEPS // 3, accumulate_grad_batches=3)
