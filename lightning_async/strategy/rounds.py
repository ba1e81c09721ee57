"""What a round holds: what the Trainer's hooks tell the engine of its samples and its losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_async.strategy.data import samples_in
from lightning_async.strategy.epochs import measure
from lightning_async.strategy.session import Session


class RoundHooks:
    """Mixed into AsyncWANHooks, before the Lightning base class."""

    _engine: Any
    _session: Session | None
    _trainer: Any

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)  # type: ignore[misc]
        if self._engine is not None:
            self._engine.count_samples(samples_in(batch))
        if self._session is not None and self._engine is not None and self._engine.armed:
            self._session.shares.hand_over()
            leases = self._session.shares.open
            if leases is not None:
                measure(self._trainer, leases.last)

    def pre_backward(self, closure_loss: Tensor) -> None:
        """The loss that is trained on, in automatic and in manual optimization. It comes before the step that may end
        the round, unscaled by the precision; Lightning has divided it by the batches that are accumulated."""
        super().pre_backward(closure_loss)  # type: ignore[misc]
        if self._engine is not None and closure_loss.numel() == 1:
            self._engine.count_loss(closure_loss, times=self._trainer.accumulate_grad_batches)
