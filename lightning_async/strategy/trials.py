"""A tuner's trials run the training loop with callbacks of their own; their steps count for nothing."""

from __future__ import annotations

from typing import Any


class TrialHooks:
    """Mixed into AsyncWANHooks, before the Lightning base class."""

    _engine: Any
    _trainer: Any
    _first: Any
    _paused: bool

    @property
    def _trial(self) -> bool:
        return self._first is not None and self._first not in self._trainer.callbacks

    def on_train_start(self) -> None:
        super().on_train_start()  # type: ignore[misc]
        engine = self._engine
        if engine is not None and engine.armed and self._trial:
            self._paused = True
            engine.disarm()

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        super().load_model_state_dict(checkpoint, strict=strict)  # type: ignore[misc]
        if self._paused and not self._trial:
            self._paused = False
            self._engine.armed = True
