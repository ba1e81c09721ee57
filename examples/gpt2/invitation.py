"""How a second terminal joins a training: the command, and a callback that prints it once the server is there."""

from __future__ import annotations

import argparse
import shlex
import sys

from lightning.pytorch import Callback, LightningModule, Trainer

SAME = ("size", "batch_size", "text", "pattern", "data_dir")  # a worker that joins needs the same model and data


class Invitation(Callback):
    """Rank 0 prints the command on a line of its own, after the line `join from a second terminal:`."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            command = join_command(self.args, trainer.strategy.address)
            print(f"\njoin from a second terminal:\n{command}\n", flush=True)


def join_command(args: argparse.Namespace, address: str) -> str:
    """The shell command that adds one worker to the run at `address`, with the model and the data of `args`."""
    words = [sys.executable, "-m", "examples.gpt2.train", "--server", address]
    for name in SAME:
        if getattr(args, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return shlex.join(words)
