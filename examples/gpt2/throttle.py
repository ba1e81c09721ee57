"""Unequal workers on one machine: a callback that makes local rank i run at relative speed s_i by sleeping.

A step of a worker of speed s lasts `unit_s / s` seconds of wall time. All workers of a run must use the same unit: the
first process measures it (`unit_for`), and leaves it in the environment, where the processes that it starts find it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from examples.gpt2.module import GPT2

UNIT_VARIABLE = "GPT2_STEP_UNIT_S"
LOAD = 0.7  # share of the machine's time that the workers may need together; the rest is for the server and validation


class Throttle(Callback):
    """Each batch of this process lasts at least `unit_s / speeds[local rank]` seconds, its wait for data included.

    Time that was lost is not made up for: after a slow step, or after validation, the next one has its full length.
    """

    def __init__(self, speeds: Sequence[float], unit_s: float) -> None:
        if not speeds or min(speeds) <= 0 or unit_s <= 0:
            raise ValueError(f"speeds {list(speeds)} and unit {unit_s} s; all must be above zero")
        self.speeds = tuple(speeds)
        self.unit_s = unit_s
        self._since = 0.0

    def period_s(self, rank: int) -> float:
        """Seconds that one step of local rank `rank` lasts."""
        if rank >= len(self.speeds):
            raise ValueError(f"local rank {rank} has no speed; give one for each device, got {list(self.speeds)}")
        return self.unit_s / self.speeds[rank]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        left = self._since + self.period_s(trainer.local_rank) - time.monotonic()
        if left > 0:
            time.sleep(left)
        self._since = time.monotonic()


def unit_for(module: GPT2, batch: Tensor, speeds: Sequence[float], steps: int = 5) -> float:
    """Seconds of one step at speed 1.0 such that this machine can hold the pace of all `speeds` at once.

    Read from the environment when an outer process has measured it; else measured on one thread over `steps`
    optimizer steps of a copy of `module`, and left in the environment.
    """
    if UNIT_VARIABLE not in os.environ:
        step_s = _measure(module, batch, steps)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ[UNIT_VARIABLE] = repr(step_s * max(sum(speeds) / cores, max(speeds)) / LOAD)
    return float(os.environ[UNIT_VARIABLE])


def _measure(module: GPT2, batch: Tensor, steps: int) -> float:
    """Seconds of one training step, the best of `steps`, on a copy and on one thread."""
    copy = GPT2(**module.hparams)
    copy.load_state_dict(module.state_dict())
    optimizer = torch.optim.AdamW(copy.parameters())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return min(_step(copy, optimizer, batch) for _ in range(steps + 1))
    finally:
        torch.set_num_threads(threads)


def _step(module: GPT2, optimizer: torch.optim.Optimizer, batch: Tensor) -> float:
    start = time.perf_counter()
    optimizer.zero_grad()
    module.loss(batch).backward()
    optimizer.step()
    return time.perf_counter() - start
