"""Adam over pseudo-gradients, alone or with updates that count less the older they are."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_async import spec
from lightning_async.arguments import number
from lightning_async.outer.base import Outer, State, Update, counter, strips, zeros


def adam(lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, eps: float = 1e-8) -> Outer:
    """m <- beta1 m + (1 - beta1) u; v <- beta2 v + (1 - beta2) u^2; after t steps
    x <- x - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps).

    Kingma and Ba 2015, algorithm 1; over pseudo-gradients FedAdam (Reddi et al. 2021), which leaves out the 1 - beta^t.
    """
    text = spec.call("adam", lr=lr, beta1=beta1, beta2=beta2, eps=eps)
    return _adam(text, lr, beta1, beta2, eps, "")


def age_gated_adam(
    lr: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-8,
    alpha: float = 0.1,
    cutoff: float = 16.0,
) -> Outer:
    """`adam`, into whose averages an update of staleness s goes with the factor cos^2(pi s / (2 cutoff)) e^(-alpha s),
    about 0 from `cutoff` on: the weight `cosine_gate(alpha, cutoff)`, on top of the run's own.

    Cosine-gated Adam-decay (Shah and Sun 2026, arXiv 2605.09126): gate x e^(-alpha s) on each pseudo-gradient before
    both moments, plain Adam at s = 0. We have read its abstract only: that the gate is half a cosine wave, and both
    defaults, are ours.
    """
    number("outer alpha", alpha, least=0)
    number("outer cutoff", cutoff, above=0)
    text = spec.call("age_gated_adam", lr=lr, beta1=beta1, beta2=beta2, eps=eps, alpha=alpha, cutoff=cutoff)
    return _adam(text, lr, beta1, beta2, eps, spec.call("cosine_gate", alpha=alpha, cutoff=cutoff))


def _adam(text: str, lr: float, beta1: float, beta2: float, eps: float, weight: str) -> Outer:
    number("outer lr", lr, above=0)
    number("outer beta1", beta1, least=0, below=1)
    number("outer beta2", beta2, least=0, below=1)
    number("outer eps", eps, least=0)

    def move(parameters: Tensor, update: Update, state: State) -> State:
        t, scale = int(state["steps"].add_(1)), update.scale
        rate, spread = lr / (1 - beta1**t), math.sqrt(1 - beta2**t)
        for x, u, m, v in strips(parameters, update.vector, state["mean"], state["mean_square"]):
            m.mul_(beta1).add_(u, alpha=(1 - beta1) * scale)
            v.mul_(beta2).addcmul_(u, u, value=(1 - beta2) * scale * scale)
            x.addcdiv_(m, v.sqrt().div_(spread).add_(eps), value=-rate)
        return state

    return Outer(text, lambda d: {"mean": zeros(d), "mean_square": zeros(d), "steps": counter()}, move, weight)
