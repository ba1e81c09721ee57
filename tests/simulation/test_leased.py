"""Leases under churn in virtual time: the real engines, samplers and server, and a model whose weights count."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_async.simulation import Simulation, read_scenario
from lightning_async.wire.messages import Reason

SAMPLES = 300


class Counters(nn.Module):
    """One weight for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SAMPLES))


@dataclass(frozen=True)
class Counting:
    """Training on sample i adds one to weight i."""

    batch_size: int = 1

    def model(self) -> nn.Module:
        return Counters()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1.0)

    def share(self, worker: int, workers: int) -> Any:
        return range(SAMPLES)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        (weight,) = model.parameters()
        return -weight[batch].sum()

    def evaluate(self, model: nn.Module) -> float:
        return 0.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_sample_is_applied_once_a_pass_under_churn_loss_and_refusals(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "lightning_async")
    town = Simulation(read_scenario("leases", [f"seed={seed}"]), Counting())
    result = town.run()
    run = town.coordinator.run
    assert run.store is not None
    ledger = run.streams["train"].state()
    assert run.store.published.tolist() == [3.0] * SAMPLES, "no sample was lost, none was applied twice"
    assert (ledger["passes"], ledger["applied"], ledger["leased"], ledger["free"]) == (3, 3 * SAMPLES, 0, 0)
    assert ledger["returned"]["lost"] > 0, "nobody crashed with leases in its hands, so nothing was shown"
    assert sum(member.refused[Reason.STALE.value] for member in run.members) > 0, "nor was anything refused"
    assert max(worker.lives for worker in result.workers) > 1
