"""SGD and Nesterov momentum over pseudo-gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_async import spec
from lightning_async.errors import ConfigError
from lightning_async.outer.base import Outer, State


def sgd(lr: float = 1.0) -> Outer:
    """x <- x - lr u. With lr = 1 and one worker the run equals that worker's own training.

    FedAvg (McMahan et al. 2017, algorithm 1).
    """
    _check_lr(lr)

    def step(parameters: Tensor, update: Tensor, scale: float, state: State) -> State:
        parameters.add_(update, alpha=-lr * scale)
        return state

    return Outer(spec.call("sgd", lr=lr), lambda d: {}, step)


def nesterov(lr: float = 0.7, momentum: float = 0.9) -> Outer:
    """m <- momentum m + u; x <- x - lr (u + momentum m).

    DiLoCo (Douillard et al. 2023, arXiv 2311.08105, section 2).
    """
    _check_lr(lr)
    if not 0 <= momentum < 1:
        raise ConfigError(f"outer momentum: got {momentum!r}, expected 0 <= momentum < 1")

    def init(d: int) -> State:
        return {"momentum": torch.zeros(d, dtype=torch.float32)}

    def step(parameters: Tensor, update: Tensor, scale: float, state: State) -> State:
        m = state["momentum"].mul_(momentum).add_(update, alpha=scale)
        parameters.add_(update, alpha=-lr * scale).add_(m, alpha=-lr * momentum)
        return state

    return Outer(spec.call("nesterov", lr=lr, momentum=momentum), init, step)


def _check_lr(lr: float) -> None:
    if not 0 < lr < float("inf"):
        raise ConfigError(f"outer lr: got {lr!r}, expected a finite number > 0")
