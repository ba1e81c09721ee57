"""The part of the strategy that must run before the user's callbacks: it is the first in the trainer's list.

At the end of training the published parameters have to be in the model before a ModelCheckpoint saves it and before
weight averaging puts its own average there; a strategy's own hooks run after all callbacks.
"""

from __future__ import annotations

import logging
from typing import Any

from lightning_async.strategy.epochs import ends_with_this_epoch
from lightning_async.strategy.session import Session

log = logging.getLogger("lightning_async")


class FirstHooks:
    """Callback hooks, mixed into each Lightning namespace's Callback."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._epochs: int | None = None  # that the user asked for, while there are more
        self._more = 0  # epochs that were begun beyond these
        self._least: tuple[Any, Any] | None = (
            None  # (min_epochs, min_steps) that the user asked for, while there are none
        )

    def on_train_batch_end(self, trainer: Any, *rest: Any, **named: Any) -> None:
        """End the fit when the server says that the run is over, with an error when ours has died."""
        self._session.check_server()
        engine = self._session.engine
        if engine is not None and engine.stop_asked:
            self._stop(trainer)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """After its last epoch StochasticWeightAveraging puts the average into the model, and goes through the data
        once more for the statistics of BatchNorm: no progress, and not what the other workers' models become."""
        if self._epochs is not None:
            self._more = max(0, trainer.current_epoch - self._epochs + 1)
        if any(
            getattr(callback, "swa_end", trainer.current_epoch) < trainer.current_epoch
            for callback in trainer.callbacks
        ):
            self.on_train_end(trainer, module)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """When nothing was left for this worker and others have lost samples meanwhile, there is one more epoch with
        these, so that each sample of the run's last pass is applied once."""
        engine, loop = self._session.engine, trainer.fit_loop
        if engine is None or not engine.armed or trainer.should_stop or trainer.received_sigterm:
            return
        more = self._session.left_over()
        if more and self._session.shares.open is not None and ends_with_this_epoch(trainer):
            self._epochs = loop.max_epochs if self._epochs is None else self._epochs
            loop.max_epochs += 1
        elif engine.stop_asked or (more is False and not ends_with_this_epoch(trainer)):
            self._stop(trainer)  # the run is over, or the others have done what is left

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """One more epoch is the last one going on: a checkpoint says of no more epochs than were asked for, so that a
        fit that goes on from it can be asked for as many, or for others."""
        if self._more:
            checkpoint["epoch"] -= self._more
            done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
            done.update({name: value - self._more for name, value in done.items()})

    def _stop(self, trainer: Any) -> None:
        """End the fit, also before the least epochs and steps that were asked for: no samples are left to train on."""
        loop = trainer.fit_loop
        if self._least is None:
            self._least = (loop.min_epochs, loop.epoch_loop.min_steps)
            if not loop._can_stop_early and (loop.min_steps or loop.min_epochs != 1):  # 1 is Lightning's own
                log.warning("the run is over, before min_epochs=%s or min_steps=%s; training ends here", *self._least)
        loop.min_epochs = loop.epoch_loop.min_steps = None
        trainer.should_stop = True

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Send what is not sent, and end with the published parameters in the model."""
        engine, loop = self._session.engine, trainer.fit_loop
        if self._epochs is not None:
            loop.max_epochs, self._epochs = self._epochs, None
        if self._least is not None:
            (loop.min_epochs, loop.epoch_loop.min_steps), self._least = self._least, None
        if engine is not None and engine.armed and not trainer.received_sigterm:
            self._session.finish()
