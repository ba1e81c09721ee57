"""The part of the strategy that must run before the user's callbacks: it is the first in the trainer's list.

At the end of training the published parameters have to be in the model before a ModelCheckpoint saves it and before
weight averaging puts its own average there; a strategy's own hooks run after all callbacks.
"""

from __future__ import annotations

from typing import Any

from lightning_async.strategy.session import Session


class FirstHooks:
    """Callback hooks, mixed into each Lightning namespace's Callback."""

    def __init__(self, session: Session) -> None:
        self._session = session

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

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Send what is not sent, and end with the published parameters in the model."""
        engine = self._session.engine
        if engine is not None and engine.armed and not trainer.received_sigterm:
            self._session.finish()
