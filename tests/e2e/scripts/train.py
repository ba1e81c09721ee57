"""A small training, as a user would write it: `python train.py '{"devices": 3, "trainer": {"max_steps": 40}}'`.

It announces what happens in lines that begin with an @, and writes result-<label><rank>.json at its end.

    devices     local workers
    strategy    arguments of AsyncWANStrategy
    trainer     arguments of the Trainer
    width       hidden units of the model; another width is another model
    samples, batch, loader      the data set and its DataLoader
    sleep_s     seconds that each step of rank i takes, a list
    gate        {"0": n}: rank 0 says "gate" after its step n and waits until the file `go` is there
    raise_at    {"rank": i, "step": n}: raise there
    goodbye_s   how long a rank waits for the server's answer to its goodbye, unless it is in a hurry
    linger_s    how long the last goodbye of the ranks but the first takes
    val         validate, with a checkpoint of the best
    loggers     CSV and TensorBoard
    then        what follows the first fit: "test", "validate", "fit"
    label       of the result files; seed of the model
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from typing import Any

import torch
from announcing import flat, say, wait_at_the_gate
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_async import AsyncWANStrategy
from lightning_async.errors import AsyncWANError
from lightning_async.strategy import session
from lightning_async.worker import Engine
from lightning_async.worker.board import Board

torch.set_num_threads(1)


class Numbers(Dataset[tuple[int, Tensor, Tensor]]):
    """Sample i is (i, x, y), a function of i alone."""

    def __init__(self, length: int) -> None:
        made = torch.Generator().manual_seed(1)
        weight = torch.randn(8, 1, generator=made)
        self.x = torch.randn(length, 8, generator=made)
        self.y = self.x @ weight

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        return index, self.x[index], self.y[index]


class Net(LightningModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 1))

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.layers(batch[1]), batch[2])

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, index: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Watch(Callback):
    """Announces, throttles, fails, and remembers."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.indices: list[int] = []
        self.losses: list[float] = []
        self.first: list[float] = []
        self.steps = 0

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        if not self.first:
            self.first = flat(module)
        self.indices += batch[0].tolist()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.losses.append(float(outputs["loss"]))
        self.steps += 1
        rank = trainer.strategy.global_rank
        say("step", rank, step=self.steps)
        fault = self.options.get("raise_at", {})
        if fault and (fault["rank"], fault["step"]) == (rank, self.steps):
            raise RuntimeError(f"the test's own failure in rank {fault['rank']}")
        if self.options.get("gate", {}).get(str(rank)) == self.steps:
            wait_at_the_gate(rank)
        naps = self.options.get("sleep_s", [])
        if naps:
            time.sleep(naps[rank])


def build(options: dict[str, Any], watch: Watch) -> Trainer:
    extra: list[Callback] = [ModelCheckpoint(monitor="val_loss", save_top_k=1)] if options.get("val") else []
    loggers = [CSVLogger("logs/csv"), TensorBoardLogger("logs/tensorboard")] if options.get("loggers") else False
    arguments = {
        "accelerator": "cpu",
        "devices": options.get("devices", 1),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": bool(options.get("val")),
        "num_sanity_val_steps": 0,
        "limit_val_batches": None if options.get("val") else 0,
        "log_every_n_steps": 5,
        "logger": loggers,
        **options.get("trainer", {}),
    }
    return Trainer(**arguments, strategy=AsyncWANStrategy(**options.get("strategy", {})), callbacks=[watch, *extra])


def main() -> None:
    options = json.loads(sys.argv[1])
    if "goodbye_s" in options:
        session.GOODBYE_S = options["goodbye_s"]
        Engine.close.__defaults__ = ("done", options["goodbye_s"])
    if os.environ.get("LOCAL_RANK", "0") != "0":
        close, linger_s = Board.close, options.get("linger_s", 0.0)
        Board.close = lambda board, goodbye_s=1.0: close(board, time.sleep(linger_s) or goodbye_s)
    rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0")))
    say("begin", rank, pid=os.getpid())
    seed_everything(options.get("seed", 1) + 100 * rank, verbose=False)  # every rank would begin elsewhere by itself
    atexit.register(lambda: say("exit", rank, at=time.time()))
    watch, net = Watch(options), Net(options.get("width", 16))
    data, batch = Numbers(options.get("samples", 4096)), options.get("batch", 8)
    train = DataLoader(data, batch_size=batch, shuffle=True, **options.get("loader", {}))
    held_out = DataLoader(Numbers(64), batch_size=32)
    trainer = build(options, watch)
    initial = flat(net)
    try:
        trainer.fit(net, train, held_out)
    except AsyncWANError as error:
        say("failed", trainer.strategy.global_rank, why=str(error))
        raise
    result: dict[str, Any] = {"rank": trainer.strategy.global_rank, "pid": os.getpid(), "initial": initial}
    result |= {"first": watch.first, "losses": watch.losses, "indices": watch.indices, "after_fit": flat(net)}
    result |= {"report": trainer.strategy.report(), "interrupted": trainer.interrupted, "stopped": trainer.should_stop}
    for step in options.get("then", []):
        if step == "fit":
            trainer.fit_loop.epoch_loop.max_steps += options["trainer"]["max_steps"]
            trainer.fit(net, train, held_out)
            result["second"] = {"after": flat(net), "report": trainer.strategy.report(), "steps": trainer.global_step}
        elif step == "validate":
            result["validate"] = trainer.validate(net, held_out, verbose=False)
        else:
            result["test"] = trainer.test(net, held_out, ckpt_path="best", verbose=False)
    if trainer.checkpoint_callback is not None:
        result["best"] = trainer.checkpoint_callback.best_model_path
    result |= {"log_dir": trainer.log_dir, "name": options.get("label", "")}
    with open(f"result-{options.get('label', '')}{trainer.strategy.global_rank}.json", "w") as file:
        json.dump(result, file)
    say("end", trainer.strategy.global_rank)


if __name__ == "__main__":
    main()
