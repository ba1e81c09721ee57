"""The family's table: names of outer optimizers for YAML, the command line and the handshake."""

from __future__ import annotations

from collections.abc import Callable

from lightning_async import spec
from lightning_async.outer.adam import adam, age_gated_adam
from lightning_async.outer.base import Outer
from lightning_async.outer.by_name import torch_optimizer
from lightning_async.outer.compensation import delay_compensated
from lightning_async.outer.direction import heloco, look_ahead
from lightning_async.outer.momentum import delayed_nesterov, nesterov, sgd

OUTERS: dict[str, Callable[..., Outer]] = {
    "sgd": sgd,
    "nesterov": nesterov,
    "delayed_nesterov": delayed_nesterov,
    "look_ahead": look_ahead,
    "heloco": heloco,
    "adam": adam,
    "age_gated_adam": age_gated_adam,
    "delay_compensated": delay_compensated,
    "torch_optimizer": torch_optimizer,
}


def outer(value: str | Outer) -> Outer:
    """The outer optimizer that `value` names."""
    return value if isinstance(value, Outer) else spec.parse(value, OUTERS, "outer optimizer")
