"""The part of the strategy that must run before the user's callbacks: it is the first in the trainer's list.

At the end of training the published parameters have to be in the model before a ModelCheckpoint saves it and before
weight averaging puts its own average there; a strategy's own hooks run after all callbacks.
"""

from __future__ import annotations

from typing import Any

from lightning_async.strategy.epochs import ends_with_this_epoch
from lightning_async.strategy.session import Session


class FirstHooks:
    """Callback hooks, mixed into each Lightning namespace's Callback."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._epochs: int | None = None  # that the user asked for, while there are more

    def on_train_batch_end(self, trainer: Any, *rest: Any, **named: Any) -> None:
        """End the fit when the server says that the run is over, with an error when ours has died."""
        self._session.check_server()
        engine = self._session.engine
        if engine is not None and engine.stop_asked:
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """After its last epoch StochasticWeightAveraging puts the average into the model, and goes through the data
        once more for the statistics of BatchNorm: no progress, and not what the other workers' models become."""
        if any(
            getattr(callback, "swa_end", trainer.current_epoch) < trainer.current_epoch
            for callback in trainer.callbacks
        ):
            self.on_train_end(trainer, module)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """When this worker's last pass of the run is through and others have lost samples of it meanwhile, there is one
        more epoch with these, so that each sample of the pass is applied once."""
        engine, loop = self._session.engine, trainer.fit_loop
        if engine is None or not engine.armed or trainer.should_stop or trainer.received_sigterm:
            return
        more = self._session.left_over()
        if more and ends_with_this_epoch(trainer):
            self._epochs = loop.max_epochs if self._epochs is None else self._epochs
            loop.max_epochs += 1
        elif more is False and not ends_with_this_epoch(trainer):
            trainer.should_stop = True  # the others have done the epochs that are left

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Send what is not sent, and end with the published parameters in the model."""
        engine = self._session.engine
        if self._epochs is not None:
            trainer.fit_loop.max_epochs, self._epochs = self._epochs, None
        if engine is not None and engine.armed and not trainer.received_sigterm:
            self._session.finish()
