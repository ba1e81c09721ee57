"""Epochs that are passes of the run: Lightning's loop learns how long one is while it lasts.

Lightning asks a loader for its length before the first batch. How many batches of a pass a worker will get is known
only with its last lease; until then the loop is told of one more than there were. So the last batch is known as such
before it is trained on, which validation, gradient accumulation and epoch-wise schedules rely on.
"""

from __future__ import annotations

import inspect
from typing import Any

from lightning_async.strategy.data import Epoch


def terms(trainer: Any, engine: Any) -> tuple[Epoch | None, str]:
    """(`passes`, why the samples of a training batch cannot be known: empty where they can)."""
    draws = "dataloader_iter" in inspect.signature(trainer.lightning_module.training_step).parameters
    return passes(trainer, engine), "training_step takes dataloader_iter and draws its batches itself" if draws else ""


def passes(trainer: Any, engine: Any) -> Epoch | None:
    """What says which epoch it is, where nothing depends on how long one is: this fit trains by epochs, whole ones,
    validated at their ends. Synchronous workers make equal steps, so theirs have equal lengths: None."""
    by_epochs = isinstance(trainer.max_epochs, int) and trainer.max_epochs > 0
    whole = isinstance(trainer.limit_train_batches, float) and trainer.limit_train_batches == 1.0
    at_ends = isinstance(trainer.val_check_interval, float) and trainer.val_check_interval == 1.0
    counted = trainer.check_val_every_n_epoch is not None
    alone = engine is not None and engine.config.quorum != "all"
    epochs = trainer.max_epochs
    return (lambda: (trainer.current_epoch, epochs)) if by_epochs and whole and at_ends and counted and alone else None


def measure(trainer: Any, last: bool) -> None:
    """A batch begins; `last`: it is this epoch's last one."""
    loop = trainer.fit_loop
    progress, fetcher = loop.epoch_loop.batch_progress, loop._data_fetcher
    batches = progress.current.ready
    length = batches if last else max(batches + 1, len(loop._combined_loader))
    loop.max_batches = trainer.val_check_batch = fetcher.length = length
    progress.is_last_batch = fetcher.done = last


def ends_with_this_epoch(trainer: Any) -> bool:
    """Whether the epoch that ends is the last one that was asked for, and no other limit is reached."""
    loop = trainer.fit_loop
    by_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return bool(loop.epoch_progress.current.processed >= (loop.max_epochs or 0) and not by_steps)
