"""LightningCLI: the strategy from YAML and flags, documented, checked, and saved as it was read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from models import Net

from lightning_async import AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.links import PRESETS, link
from lightning_async.server import ServerThread


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own use of it


class Model(Net):
    """Net without arguments, as a CLI needs it."""

    def __init__(self) -> None:
        super().__init__()

    def train_dataloader(self) -> Any:
        from models import loader

        return loader()


def read(*arguments: str, run: bool = False) -> LightningCLI:
    quiet = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "enable_checkpointing": False}
    return LightningCLI(Model, run=run, args=list(arguments), trainer_defaults=quiet, seed_everything_default=False)


def written(tmp_path: Path, **init_args: Any) -> str:
    strategy = {"class_path": "lightning_async.AsyncWANStrategy", "init_args": init_args}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"strategy": strategy}}))
    return f"--config={path}"


def test_strings(tmp_path: Path) -> None:
    strategy = read(written(tmp_path, local_steps=8, compression="topk(density=0.02)", quorum="all")).trainer.strategy
    assert isinstance(strategy, AsyncWANStrategy)
    assert strategy._given == AsyncWANStrategy(local_steps=8, compression="topk(density=0.02)", quorum="all")._given


def test_a_line_by_its_name_and_by_its_numbers(tmp_path: Path) -> None:
    for given in ("cellular(loss=0.02)", {**asdict(PRESETS["cellular"]), "loss": 0.02}):
        assert read(written(tmp_path, link=given)).trainer.strategy._link == link("cellular(loss=0.02)")


def test_nested_objects(tmp_path: Path) -> None:
    outer = {"class_path": "lightning_async.outer.nesterov", "init_args": {"lr": 0.5}}
    topk = {"class_path": "lightning_async.codecs.topk", "init_args": {"density": 0.1}}
    feedback = {"class_path": "lightning_async.codecs.error_feedback", "init_args": {"inner": topk}}
    strategy = read(written(tmp_path, outer=outer, staleness=5, compression=feedback)).trainer.strategy
    text = {"outer": "nesterov(lr=0.5)", "compression": "error_feedback(topk(density=0.1))"}
    assert strategy._given == AsyncWANStrategy(**text, staleness=5)._given


def test_by_name_and_by_flags() -> None:
    assert isinstance(read("--trainer.strategy=async_wan").trainer.strategy, AsyncWANStrategy)
    flags = ["--trainer.strategy=lightning_async.AsyncWANStrategy", "--trainer.strategy.init_args.local_steps=4"]
    strategy = read(*flags, "--trainer.strategy.init_args.outer=nesterov(lr=0.5)").trainer.strategy
    assert strategy._given == AsyncWANStrategy(local_steps=4, outer="nesterov(lr=0.5)")._given


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"local_stepz": 4}, "local_stepz"),
        ({"local_steps": "many"}, "many"),
        ({"submit": "both"}, "both"),
        ({"quorum": "most"}, "most"),
        ({"compression": "topkk"}, "topkk"),
        ({"outer": {"class_path": "lightning_async.outer.nestrov"}}, "nestrov"),
    ],
    ids=str,
)
def test_typos_are_rejected(tmp_path: Path, wrong: dict[str, Any], said: str, capsys: Any) -> None:
    with pytest.raises((SystemExit, ValueError)) as refused:
        read(written(tmp_path, **wrong))
    assert said in capsys.readouterr().err + str(refused.value)


def test_the_saved_configuration_reads_back(tmp_path: Path) -> None:
    outer = {"class_path": "lightning_async.outer.nesterov", "init_args": {"lr": 0.5}}
    with ServerThread(RunConfig(local_steps=2, outer="nesterov(lr=0.5)")) as server:
        quiet = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_progress_bar": False}
        quiet |= {"enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": str(tmp_path)}
        first = LightningCLI(
            Model,
            args=["fit", written(tmp_path, server=server.address, outer=outer)],
            trainer_defaults={**quiet, "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path)}}},
            seed_everything_default=False,
            save_config_callback=SaveConfigCallback,
        )
        assert server.coordinator.run.steps_total == 6
    saved = next(tmp_path.rglob("version_0/config.yaml"))
    again = read(f"--config={without_subcommand(saved, tmp_path)}")
    assert again.trainer.strategy._given == first.trainer.strategy._given
    assert again.trainer.strategy.server == server.address


def without_subcommand(saved: Path, folder: Path) -> Path:
    values = yaml.safe_load(saved.read_text())
    kept = folder / "again.yaml"
    kept.write_text(yaml.safe_dump({"trainer": {"strategy": values["trainer"]["strategy"]}}))
    return kept


SCRIPT = """
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
LightningCLI(BoringModel, run=False)
"""


@pytest.mark.slow
def test_help_shows_every_argument_with_its_text() -> None:
    """In a program that has not imported lightning_async: class_path does."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        SCRIPT,
        "--trainer.strategy.help",
        "lightning_async.AsyncWANStrategy",
    ]
    out = " ".join(subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout.split())
    assert "Train one model together with workers" in out
    for name, text in {
        "local_steps": "optimizer steps in a round",
        "server": "address of a running server",
        "compression": "codec of what workers send",
        "aggregation": "how updates become one",
        "quorum": "distinct workers whose updates make a step",
        "state_dir": "folder where an embedded server keeps its state",
    }.items():
        assert f"--trainer.strategy.init_args.{name}" in out or f".{name}" in out
        assert text in out
    assert "Optional[Literal['update', 'gradient']]" in out
