"""The family's table: names of outer optimizers for YAML, the command line and the handshake."""

from __future__ import annotations

from collections.abc import Callable

from lightning_async import spec
from lightning_async.outer.base import Outer
from lightning_async.outer.momentum import nesterov, sgd

OUTERS: dict[str, Callable[..., Outer]] = {"sgd": sgd, "nesterov": nesterov}


def outer(value: str | Outer) -> Outer:
    """The outer optimizer that `value` names."""
    return value if isinstance(value, Outer) else spec.parse(value, OUTERS, "outer optimizer")
