"""A task that costs nothing: a quadratic bowl with noisy gradients, for simulations of many workers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_async.errors import ConfigError


@dataclass(frozen=True)
class Noise:
    """Samples [d], standard normal around `centre`, by number: the same number, the same sample."""

    centre: Tensor
    noise: float
    seed: int
    length: int = 4096

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * self.length + index)
        return self.centre + self.noise * torch.randn(self.centre.shape, generator=generator)


class Point(nn.Module):
    """d numbers that start at 0."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(d))


@dataclass(frozen=True)
class Synthetic:
    """Minimise |x - 1|^2 / 2 over x in R^d from samples 1 + noise * N(0, 1); `spread` moves each worker's own optimum.

    The loss begins at 0.5 for every d.
    """

    d: int = 16
    noise: float = 1.0
    spread: float = 0.0
    lr: float = 0.05
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.d < 1 or self.noise < 0 or self.lr <= 0 or self.batch_size < 1:
            raise ConfigError(f"got {self!r}, expected d and batch_size >= 1, noise >= 0, lr > 0")

    def model(self) -> nn.Module:
        return Point(self.d)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.lr)

    def share(self, worker: int, workers: int) -> Noise:
        own = torch.randn(self.d, generator=torch.Generator().manual_seed(worker))
        return Noise(1.0 + self.spread * own, self.noise, worker)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        (x,) = model.parameters()
        off = x - batch.mean(0)  # the spread of the batch adds a constant, which no gradient sees
        return off.dot(off) / 2

    def evaluate(self, model: nn.Module) -> float:
        (x,) = model.parameters()
        return float((x.detach() - 1.0).square().mean() / 2)


def synthetic(d: int = 16, noise: float = 1.0, spread: float = 0.0, lr: float = 0.05, batch_size: int = 1) -> Synthetic:
    """The quadratic bowl of `d` dimensions."""
    return Synthetic(d, noise, spread, lr, batch_size)
