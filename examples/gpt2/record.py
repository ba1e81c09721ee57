"""Loss curves of every worker: a callback that writes CSV files, and a reader and a plot of them.

Loggers write on rank 0 only; here each process writes its own file, so that all workers can be compared.
"""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


class Point(NamedTuple):
    """One line of a file: Unix time, this worker's steps and tokens so far, and losses (NaN: none at this point)."""

    time_s: float
    step: int
    tokens: int
    train_loss: float
    val_loss: float


class Recorder(Callback):
    """Writes one Point to `folder/<name>.csv` every `every` batches, and one after each validation.

    Without a name the file is called after the local rank.
    """

    def __init__(self, folder: str | Path, name: str = "", every: int = 5) -> None:
        self.folder = Path(folder)
        self.name = name
        self.every = every
        self._tokens = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tokens = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._path(trainer).open("w", newline="") as file:
            csv.writer(file).writerow(Point._fields)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._tokens += batch[:, 1:].numel()
        if trainer.global_step % self.every == 0:
            self._write(trainer, train=float(outputs["loss"]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and "val_loss" in trainer.callback_metrics:
            self._write(trainer, val=float(trainer.callback_metrics["val_loss"]))

    def _write(self, trainer: Trainer, train: float = math.nan, val: float = math.nan) -> None:
        with self._path(trainer).open("a", newline="") as file:
            csv.writer(file).writerow(Point(time.time(), trainer.global_step, self._tokens, train, val))

    def _path(self, trainer: Trainer) -> Path:
        return self.folder / f"{self.name or f'worker-{trainer.local_rank}'}.csv"


def read(folder: Path) -> dict[str, list[Point]]:
    """The points of every file in `folder`, by its name without the suffix."""
    curves = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        curves[path.stem] = [Point(float(a), int(b), int(c), float(d), float(e)) for a, b, c, d, e in rows]
    return curves


def smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponentially weighted mean of the values so far, unbiased at the start."""
    total, norm, out = 0.0, 0.0, []
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + 1 - weight
        out.append(total / norm)
    return out


def plot(curves: dict[str, list[Point]], path: Path, title: str) -> None:
    """A PNG: train loss (smoothed) of each worker and validation loss, over seconds and over the worker's tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    start = min(points[0].time_s for points in curves.values() if points)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for name, points in curves.items():
        train = [p for p in points if not math.isnan(p.train_loss)]
        val = [p for p in points if not math.isnan(p.val_loss)]
        for axis, x in zip(axes, (lambda p: p.time_s - start, lambda p: p.tokens / 1e6), strict=True):
            axis.plot([x(p) for p in train], smooth([p.train_loss for p in train]), lw=1.2, label=f"{name} train")
            if val:
                axis.plot([x(p) for p in val], [p.val_loss for p in val], "k.-", lw=1.2, label="validation")
    axes[0].set(xlabel="seconds", ylabel="loss (nats per token)")
    axes[1].set(xlabel="million tokens seen by the worker")
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
