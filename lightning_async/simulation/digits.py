"""The 1,797 images of scikit-learn's digits and a network of one hidden layer: real gradients in 100 microseconds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_async.errors import ConfigError

CLASSES = 10
HELD_OUT = 5  # every fifth image is for the evaluation


@dataclass(frozen=True)
class Images:
    """(image [64], label) pairs."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= len(self):
            raise IndexError(index)
        return self.images[index], int(self.labels[index])


@lru_cache(maxsize=1)
def corpus() -> tuple[Images, Images]:
    """(training set, held-out set). Raises ConfigError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("the task `digits` needs scikit-learn: pip install scikit-learn") from error
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = torch.from_numpy((pixels[order] / 16.0).astype(np.float32)), torch.from_numpy(labels[order])
    held = torch.arange(len(y)) % HELD_OUT == 0
    return Images(x[~held], y[~held]), Images(x[held], y[held])


@dataclass(frozen=True)
class Digits:
    """Cross-entropy (nats) of a 64 - hidden - 10 network under SGD with momentum.

    `concentration`: None shares the images out at random, a number by a Dirichlet draw for every class.
    """

    hidden: int = 32
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.9
    concentration: float | None = None

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(64, self.hidden), nn.ReLU(), nn.Linear(self.hidden, CLASSES))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum)

    def share(self, worker: int, workers: int) -> Images:
        train, rng = corpus()[0], np.random.default_rng(0)
        owners = rng.permutation(len(train)) % workers
        if self.concentration is not None:
            for label in range(CLASSES):
                mine = np.flatnonzero(train.labels.numpy() == label)
                owners[mine] = rng.choice(workers, len(mine), p=rng.dirichlet([self.concentration] * workers))
            owners[rng.permutation(len(owners))[:workers]] = np.arange(workers)  # nobody is without a sample
        return Images(train.images[owners == worker], train.labels[owners == worker])

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(model(images), labels)

    def evaluate(self, model: nn.Module) -> float:
        held = corpus()[1]
        return float(functional.cross_entropy(model(held.images), held.labels))


def digits(
    hidden: int = 32,
    batch_size: int = 32,
    lr: float = 0.05,
    momentum: float = 0.9,
    concentration: float | None = None,
) -> Digits:
    """Digits on a network of one hidden layer."""
    return Digits(hidden, batch_size, lr, momentum, concentration)
