"""Server-side (outer) optimizers: what the server does with an aggregated update."""

from lightning_async.outer.base import Outer, State
from lightning_async.outer.momentum import nesterov, sgd
from lightning_async.outer.table import OUTERS, outer
from lightning_async.outer.torch_optim import ALLOWED, TorchOuter, describe, hyper_of

__all__ = ["ALLOWED", "OUTERS", "Outer", "State", "TorchOuter", "describe", "hyper_of", "nesterov", "outer", "sgd"]
