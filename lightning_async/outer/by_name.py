"""Any of torch's own optimizers over pseudo-gradients, by name: the whole vector is one parameter of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_async import spec
from lightning_async.errors import ConfigError
from lightning_async.outer.base import Outer, State, Update
from lightning_async.outer.torch_optim import ALLOWED, PINNED


def torch_optimizer(name: str = "AdamW", lr: float = 0.01, **settings: Any) -> Outer:
    """x <- torch.optim.<name>(lr=lr, ...).step() with u as the gradient; every formula is torch's.

    Names are those of `submit="gradient"`: all of them work element by element, so that the vector need not be cut into
    tensors. Settings are torch's keywords. It holds torch's state, and up to three vectors while it steps.
    """
    cls = ALLOWED.get(name)
    if cls is None:
        raise ConfigError(f"outer torch_optimizer: got {name!r}, expected one of {', '.join(ALLOWED)}")
    pinned = sorted(PINNED.keys() & settings.keys())
    if pinned:
        raise ConfigError(f"outer torch_optimizer: {', '.join(pinned)} is not for the server to set; leave it out")
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()} | {"lr": lr}
    try:
        cls([nn.Parameter(torch.zeros(1, dtype=torch.float32))], **given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"outer torch_optimizer {name}: {error}") from error

    def move(parameters: Tensor, update: Update, state: State) -> State:
        parameter = nn.Parameter(parameters)
        optimizer = cls([parameter], **given)
        if state:
            optimizer.state[parameter] = dict(state)
        parameter.grad = update.vector if update.scale == 1.0 else update.vector * update.scale
        optimizer.step()
        return {key: value for key, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}

    def like(d: int) -> State:
        state = move(torch.zeros(1, dtype=torch.float32), Update(torch.ones(1, dtype=torch.float32)), {})
        return {key: value if value.dim() == 0 else value.expand(d) for key, value in state.items()}

    rest = {key: value for key, value in given.items() if key != "lr"}
    return Outer(spec.call("torch_optimizer", name=name, lr=lr, **rest), lambda d: {}, move, like=like)
