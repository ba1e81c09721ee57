"""A server on its own is killed while real workers train, and started again on its state_dir: nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from ports import free_address
from processes import Program, address_of, serve
from torch import nn

from lightning_async.cli.status import ask, stored
from lightning_async.worker import Attachment, Engine, Identity

pytestmark = pytest.mark.slow
STEPS = 36
DEATHS = (7, 20)  # before these steps


class Worker:
    """An engine with its model, stepped by hand."""

    def __init__(self, address: str, name: str) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.engine = Engine(address, self.model, [self.optimizer], Identity(name=name, rank=0))
        self.engine.start()
        self.attachment = Attachment(self.engine)
        self.engine.arm()

    def step(self, seed: int) -> None:
        x = torch.randn(8, 30, generator=torch.Generator().manual_seed(seed))
        self.engine.count_samples(8)
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        self.optimizer.step()

    def close(self) -> None:
        self.attachment.detach()
        self.engine.close()


def begun(folder: Path, address: str) -> Program:
    """A server that is coming up; whoever talks to it waits."""
    return serve(
        folder, address, state_dir=folder / "state", local_steps=2, compression="topk(density=0.2)",
        outer="nesterov(lr=0.5, momentum=0.5)", snapshot_every_versions=5,
    )  # fmt: skip


def resumed(folder: Path, address: str) -> Program:
    """The same run again, as it was configured."""
    command = [sys.executable, "-m", "lightning_async", "resume", f"--state={folder / 'state'}", f"--address={address}"]
    return Program(command, folder)


def test_workers_train_on_through_deaths_of_the_server(tmp_path: Path) -> None:
    address, programs, workers = free_address(), [], []
    try:
        programs.append(begun(tmp_path, address))
        address_of(programs[-1])
        workers = [Worker(address, name) for name in ("one", "two")]
        for step in range(STEPS):
            if step in DEATHS:
                os.kill(programs[-1].pid, signal.SIGKILL)
                programs[-1].wait(60.0)
                programs.append(resumed(tmp_path, address))
            for number, worker in enumerate(workers):
                worker.step(100 * number + step)
        for worker in workers:
            worker.engine.flush()
        state = ask(address, 60.0)
        assert state["steps"] == 2 * STEPS, "every step is in, once"
        assert [entry["steps"] for entry in state["workers"].values()] == [STEPS, STEPS]
        assert state["workers"]["one"]["refused"] == {}
        for worker in workers:
            worker.engine.align()
        first, second = (torch.cat([p.detach().flatten() for p in worker.model.parameters()]) for worker in workers)
        assert torch.equal(first, second), "both hold what the last server publishes"
        os.kill(programs[-1].pid, signal.SIGKILL)
        programs[-1].wait(60.0)
        assert stored(tmp_path / "state")["steps"] == 2 * STEPS
    finally:
        for worker in workers:
            worker.close()
        for program in programs:
            program.__exit__(None, None, None)
