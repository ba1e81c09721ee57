"""What simulated workers train: `digits(...)`, `text(...)`, `synthetic(...)`, or any object with the methods of Task.

class Mine:                                        # a user's own
    batch_size = 8
    def model(self): ...                           # the same first parameters at every call
    def optimizer(self, model): ...
    def share(self, worker, workers): ...          # a data set of tensors, or of tuples of tensors
    def loss(self, model, batch): ...
    def evaluate(self, model): ...

simulate(scenario, task=Mine())
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler

from lightning_async import spec
from lightning_async.errors import ConfigError
from lightning_async.simulation.digits import digits
from lightning_async.simulation.synthetic import synthetic
from lightning_async.simulation.text import text
from lightning_async.worker import Engine, LeaseSampler


class Task(Protocol):
    """A model, its data, and what is to become small."""

    @property
    def batch_size(self) -> int:
        """Samples in one step of one worker."""

    def model(self) -> nn.Module:
        """A new model; its parameters are the same at every call."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The inner optimizer of one worker."""

    def share(self, worker: int, workers: int) -> Any:
        """The data of worker `worker` of `workers`: `len` and `[i]`, a tensor or a tuple of tensors each."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss to differentiate, of samples stacked along a new first dimension."""

    def evaluate(self, model: nn.Module) -> float:
        """How far training is, smaller is better, on data that no worker has. In eval mode, without gradients."""


TASKS: dict[str, Callable[..., Task]] = {"digits": digits, "synthetic": synthetic, "text": text}


def task(choice: str | Task) -> Task:
    """The task that `choice` is or names. Raises ConfigError for a name that is not in the table."""
    return spec.parse(choice, TASKS, "task") if isinstance(choice, str) else choice


def batches(data: Any, batch_size: int, rng: np.random.Generator) -> Iterator[Any]:
    """Endless batches of samples drawn with replacement. Raises ConfigError for a data set without samples."""
    if not len(data):
        raise ConfigError("got a share of no samples; use fewer workers or more data")
    while True:
        yield stacked([data[int(i)] for i in rng.integers(0, len(data), batch_size)])


def leased_batches(
    engine: Engine, data: Any, batch_size: int, passes: int, give_up: Callable[[], bool]
) -> Iterator[Any]:
    """Batches of what the server leases, until so many passes over `data` are applied or taken by others."""
    sampler, epoch = LeaseSampler(engine, "train", len(data), batch_size, shuffle=True), 0
    while epoch < passes:
        sampler.passes = (epoch, passes)
        for indices in BatchSampler(sampler, batch_size, drop_last=False):
            sampler.hand_over()
            yield stacked([data[i] for i in indices])
        if not sampler.final:
            epoch += 1
        elif not sampler.left_over(give_up):
            return


def stacked(samples: list[Any]) -> Any:
    """Samples (tensors, numbers, or tuples of them) as a batch."""
    if isinstance(samples[0], tuple):
        return tuple(stacked(list(column)) for column in zip(*samples, strict=True))
    return torch.stack([torch.as_tensor(sample) for sample in samples])
