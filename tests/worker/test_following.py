"""Newer parameters come under a running round, and do not make the round look younger than it is."""

from __future__ import annotations

import time

import pytest
import torch
from eventually import ENOUGH_S
from torch import nn

from lightning_async.config import RunConfig
from lightning_async.server import ServerThread
from lightning_async.worker import AsyncOptimizer


def make(server: ServerThread, name: str) -> AsyncOptimizer:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    return AsyncOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, server.address, name=name)


def step(worker: AsyncOptimizer, times: int) -> None:
    for _ in range(times):
        worker.zero_grad()
        worker.engine.module(torch.ones(2, 4)).pow(2).mean().backward()
        worker.step()


def rounds(worker: AsyncOptimizer, times: int) -> None:
    for _ in range(times):
        step(worker, 4)
        worker.engine.flush()


def follow(worker: AsyncOptimizer, version: int) -> None:
    """Wait until the worker has heard of `version`, then let it make a step, which merges it."""
    deadline = time.monotonic() + ENOUGH_S
    while worker.engine.replica.version < version and time.monotonic() < deadline:
        step(worker, 1)
        worker.engine.wait(lambda: worker.engine._courier.has_news, 0.2)
    assert worker.engine.replica.version >= version


def test_a_running_round_gets_newer_parameters_and_keeps_its_age() -> None:
    with (
        ServerThread(RunConfig(local_steps=10_000)) as server,
        make(server, "slow") as slow,
        make(server, "fast") as fast,
    ):
        fast.engine.config = RunConfig(local_steps=4)
        step(slow, 1)
        rounds(fast, 1)
        follow(slow, 1)
        rounds(fast, 3)
        follow(slow, 4)
        slow.engine.flush()
        assert dict(server.coordinator.run.members.named("slow").staleness.counts) == {3: 1}


@pytest.mark.parametrize("follows", [True, False])
def test_who_does_not_follow_keeps_his_parameters_until_he_sends(follows: bool) -> None:
    config = RunConfig(local_steps=10_000, follow=follows)
    with ServerThread(config) as server, make(server, "slow") as slow, make(server, "fast") as fast:
        fast.engine.config = RunConfig(local_steps=4)
        step(slow, 1)
        rounds(fast, 1)
        if follows:
            follow(slow, 1)
        else:
            slow.engine.wait(lambda: slow.engine._courier.has_news, 1.0)
            step(slow, 1)
            assert slow.engine.replica.version == 0
