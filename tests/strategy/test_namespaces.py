"""`lightning.pytorch` and `pytorch_lightning`: a strategy for each, and what is said to who mixes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from models import trainer

from lightning_async import AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.server import ServerThread

pytest.importorskip("pytorch_lightning")

OTHER = """
import sys, warnings
warnings.simplefilter("ignore")
import pytorch_lightning as pl
from pytorch_lightning.demos.boring_classes import BoringModel
from lightning_async import AsyncWANStrategy
assert "lightning.pytorch" not in sys.modules
quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
for strategy in (AsyncWANStrategy(sys.argv[1], data="own"), "async_wan"):
    trainer = pl.Trainer(strategy=strategy, max_steps=3, accelerator="cpu", devices=1, limit_val_batches=1, **quiet)
    assert isinstance(trainer.strategy, AsyncWANStrategy)
    if strategy != "async_wan":
        trainer.fit(BoringModel())
"""

MIXED = """
import pytorch_lightning as pl
import lightning.pytorch
from lightning_async import AsyncWANStrategy
try:
    pl.Trainer(strategy=AsyncWANStrategy())
except ValueError as error:
    print(error)
from lightning_async.strategy.pytorch_lightning import AsyncWANStrategy
for strategy in (AsyncWANStrategy(), "async_wan"):
    trainer = pl.Trainer(strategy=strategy, logger=False, accelerator="cpu", devices=1)
    assert isinstance(trainer.strategy, AsyncWANStrategy)
"""


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_other_namespace_trains() -> None:
    with ServerThread(RunConfig(local_steps=1)) as server:
        run(OTHER, server.address)
        assert server.coordinator.run.steps_total == 3


def test_who_mixes_them_reads_what_to_import() -> None:
    said = run(MIXED)
    assert "invalid strategy" in said
    assert "AsyncWANStrategy for lightning.pytorch" in said
    assert "for pytorch_lightning: from lightning_async.strategy.pytorch_lightning import AsyncWANStrategy" in said


def test_the_name_is_registered_once_with_a_description() -> None:
    from lightning.pytorch.strategies import StrategyRegistry

    assert "parameter server" in StrategyRegistry["async_wan"]["description"]
    assert type(trainer("async_wan").strategy) is AsyncWANStrategy
