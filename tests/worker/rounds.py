"""A server in a thread and engines in this one: a small model with buffers, and steps that are made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_async.config import RunConfig
from lightning_async.server import ServerThread
from lightning_async.worker import Attachment, Engine, Identity


def model(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).float() for p in module.parameters()]).clone()


class Worker:
    """A joined and armed engine with its model and optimizer."""

    def __init__(self, address: str, name: str, lr: float = 0.1, seed: int = 1, **optimizer: Any) -> None:
        self.model = model(seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, **optimizer)
        self.engine = Engine(address, self.model, [self.optimizer], Identity(name=name, rank=0))
        self.engine.start()
        self.attachment = Attachment(self.engine)
        self.engine.arm()

    def step(self, seed: int, scale: float = 1.0) -> None:
        """One optimizer step on made-up data."""
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        self.engine.count_samples(5)
        self.optimizer.zero_grad()
        (self.model(x).square().mean() * scale).backward()
        self.optimizer.step()

    def close(self) -> None:
        self.attachment.detach()
        self.engine.close()


@contextmanager
def run(*names: str, **config: Any) -> Iterator[tuple[Any, ...]]:
    """The server and a Worker for each name; all are closed."""
    with ServerThread(RunConfig(**config)) as server:
        workers: list[Worker] = []
        try:
            for number, name in enumerate(names):
                workers.append(Worker(server.address, name, seed=number + 1))
            yield (server, *workers)
        finally:
            for worker in workers:
                worker.close()


def published(server: ServerThread) -> Tensor:
    assert server.coordinator.run.store is not None
    return server.coordinator.run.store.published.clone()
