"""Attach an engine to the user's own optimizers, and detach it without a trace.

The instance's `step` is replaced by a bound method; the object stays the user's, so schedulers, scalers, monitors and
callbacks that hold it do not notice. The original `step` is always called, with its closure by keyword: its hooks run,
and a scheduler that counts steps sees them. In gradient mode the gradients are taken away after the closure and before
the original looks at them, so the local step moves nothing, and are put back for whoever reads them later.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch

from lightning_async.worker.engine import Engine

Optimizer = torch.optim.Optimizer


class Attachment:
    """The engine's hold on its optimizers, from construction until `detach`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept = [(optimizer, optimizer.__dict__.get("step")) for optimizer in engine.optimizers]
        for index, optimizer in enumerate(engine.optimizers):
            _patch(optimizer, index, engine)

    def detach(self) -> None:
        """Give the optimizers their own `step` back. Idempotent."""
        for optimizer, step in self._kept:
            if step is None:
                optimizer.__dict__.pop("step", None)
            else:
                optimizer.__dict__["step"] = step
        self._kept = []


def _patch(optimizer: Optimizer, index: int, engine: Engine) -> None:
    original = optimizer.step
    work = _gradient_step if engine.config.submit == "gradient" else _update_step

    def step(self: Optimizer, closure: Callable[[], Any] | None = None, **rest: Any) -> Any:
        self._opt_called = True  # type: ignore[attr-defined]  # ... and then this is what it looks for
        arguments = rest if closure is None else {"closure": closure, **rest}
        if not engine.armed:
            return original(**arguments)
        return work(engine, index, self, original, arguments)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # a scheduler made later must not wrap it again
    optimizer.step = types.MethodType(step, optimizer)  # type: ignore[method-assign]


def _update_step(
    engine: Engine, index: int, optimizer: Optimizer, original: Callable[..., Any], arguments: dict[str, Any]
) -> Any:
    out = original(**arguments)
    if any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
        engine.after_step(index)
    return out


def _gradient_step(
    engine: Engine, index: int, optimizer: Optimizer, original: Callable[..., Any], arguments: dict[str, Any]
) -> Any:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    hidden: list[torch.Tensor | None] = []

    def hide() -> None:
        hidden.extend(p.grad for p in parameters)
        for p in parameters:
            p.grad = None

    closure = arguments.get("closure")
    if closure is None:
        hide()
    else:

        def wrapped() -> Any:
            loss = closure()
            hide()
            return loss

        arguments = {**arguments, "closure": wrapped}
    out = original(**arguments)
    for p, gradient in zip(parameters, hidden, strict=False):
        p.grad = gradient
    engine.submit_gradient(index)
    return out
