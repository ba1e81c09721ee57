"""Server-side (outer) optimizers: what the server does with an aggregated update."""

from lightning_async.outer.adam import adam, age_gated_adam
from lightning_async.outer.base import Outer, State, Update, bind
from lightning_async.outer.by_name import torch_optimizer
from lightning_async.outer.compensation import delay_compensated
from lightning_async.outer.direction import heloco, look_ahead
from lightning_async.outer.momentum import delayed_nesterov, nesterov, sgd
from lightning_async.outer.table import OUTERS, outer
from lightning_async.outer.torch_optim import ALLOWED, TorchOuter, describe, hyper_of, torch_outers

__all__ = [
    "ALLOWED",
    "OUTERS",
    "Outer",
    "State",
    "TorchOuter",
    "Update",
    "adam",
    "age_gated_adam",
    "bind",
    "delay_compensated",
    "delayed_nesterov",
    "describe",
    "heloco",
    "hyper_of",
    "look_ahead",
    "nesterov",
    "outer",
    "sgd",
    "torch_optimizer",
    "torch_outers",
]
