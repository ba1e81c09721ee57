"""Methods that use the momentum as a direction: workers start from where it leads, stale updates are turned towards it.

What is kept and published is the look-ahead point y = x - k m itself, not x: then workers need to know nothing of it,
and no second vector is held. In terms of y, a step x <- x - lr (G + momentum m) with the new m becomes

    y <- y + k m;  m <- momentum m + (1 - momentum) G;  y <- y - lr G - (lr momentum + k) m                (1)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_async import spec
from lightning_async.arguments import number, whole
from lightning_async.outer.base import Outer, State, Update, strips, zeros

TINY = 1e-12  # a shorter block has no direction


def look_ahead(lr: float = 0.7, momentum: float = 0.9, steps: int = 1) -> Outer:
    """m <- momentum m + (1 - momentum) u; x <- x - lr (u + momentum m); workers start from where momentum alone would
    lead in `steps` further steps, y = x - lr (momentum + ... + momentum^steps) m, which is what is published.

    Momentum look-ahead (Ajanthan et al., MCDC workshop at ICLR 2025). The rule is the one that arXiv 2606.00271
    restates (steps = 1); the sum over several steps is ours, for staleness of several versions.
    """
    number("outer lr", lr, above=0)
    number("outer momentum", momentum, least=0, below=1)
    whole("outer steps", steps, 1)
    walk = _walk(lr, momentum, lr * sum(momentum**i for i in range(1, steps + 1)))

    def move(parameters: Tensor, update: Update, state: State) -> State:
        walk(parameters, update.vector, state["momentum"], update.scale, 0.0)
        return state

    text = spec.call("look_ahead", lr=lr, momentum=momentum, steps=steps)
    return Outer(text, lambda d: {"momentum": zeros(d)}, move)


def heloco(
    lr: float = 0.7,
    momentum: float = 0.9,
    c_ok: float = 0.2,
    k_s: float = 0.5,
    k_d: float = 1.0,
    kappa: float = 3.0,
    beta_max: float = 0.5,
) -> Outer:
    """`look_ahead` along an update that is corrected tensor by tensor, by c = cos(u, m) and
    conf = |u| / (|u| + kappa |m|):

    c >= c_ok: kept. c < 0: u - beta c |u| m / |m| with beta = min(k_s (-c) conf, beta_max), which takes out part of
    what points against the momentum. Between: turned towards m by the share lam = min(k_d (1 - c) conf, 1), that is
    (1 - lam) u / |u| + lam m / |m|, at the length of u.

    HeLoCo (Al Asif et al. 2026, arXiv 2606.00271, algorithm 2 and equations 5 to 15). There every arrival is corrected;
    here every step is, which is the same with a quorum of 1, and the aggregate where a step is made of several.
    The constants are those of public implementations of the paper, whose tables we have not seen.
    """
    number("outer lr", lr, above=0)
    number("outer momentum", momentum, least=0, below=1)
    number("outer c_ok", c_ok, least=-1, most=1)
    for name, value in {"k_s": k_s, "k_d": k_d, "kappa": kappa, "beta_max": beta_max}.items():
        number(f"outer {name}", value, least=0)
    turn = Turn(c_ok, k_s, k_d, kappa, beta_max)
    walk = _walk(lr, momentum, lr * momentum)
    given = {"c_ok": c_ok, "k_s": k_s, "k_d": k_d, "kappa": kappa, "beta_max": beta_max}
    text = spec.call("heloco", lr=lr, momentum=momentum, **given)

    def of(sizes: Sequence[int]) -> Outer:
        def move(parameters: Tensor, update: Update, state: State) -> State:
            whole = (parameters, update.vector, state["momentum"])
            parts = [torch.split(v, list(sizes)) if sizes else (v,) for v in whole]
            for x, u, m in zip(*parts, strict=True):
                keep, pull = turn.of(*_products(u, m, update.scale))
                walk(x, u, m, keep * update.scale, pull)
            return state

        return Outer(text, lambda d: {"momentum": zeros(d)}, move, bind=lambda sizes, workers: of(sizes))

    return of(())


@dataclass(frozen=True)
class Turn:
    """The correction of one tensor: a linear combination of the update and the momentum."""

    c_ok: float
    k_s: float
    k_d: float
    kappa: float
    beta_max: float

    def of(self, uu: float, mm: float, um: float) -> tuple[float, float]:
        """(a, b): the corrected update is a u + b m. From the squared lengths of both and their product."""
        length, other = math.sqrt(uu), math.sqrt(mm)
        if length < TINY or other < TINY:
            return 1.0, 0.0
        c = max(-1.0, min(1.0, um / (length * other)))
        conf = length / (length + self.kappa * other)
        if c >= self.c_ok:
            return 1.0, 0.0
        if c < 0:
            return 1.0, -min(-self.k_s * c * conf, self.beta_max) * c * length / other
        lam = min(self.k_d * (1 - c) * conf, 1.0)
        mixed = math.sqrt((1 - lam) ** 2 + lam**2 + 2 * lam * (1 - lam) * c)
        return (1 - lam) / mixed, lam * length / (other * mixed)


def _products(u: Tensor, m: Tensor, scale: float) -> tuple[float, float, float]:
    """|u|^2, |m|^2, u . m of the scaled update."""
    uu = mm = um = 0.0
    for a, b in strips(u, m):
        uu, mm, um = uu + float(a.dot(a)), mm + float(b.dot(b)), um + float(a.dot(b))
    return uu * scale * scale, mm, um * scale


def _walk(lr: float, momentum: float, ahead: float) -> Callable[[Tensor, Tensor, Tensor, float, float], None]:
    """Step (1) of y and m in place, for G = keep u + pull m."""

    def walk(parameters: Tensor, update: Tensor, velocity: Tensor, keep: float, pull: float) -> None:
        for y, u, m in strips(parameters, update, velocity):
            y.add_(m, alpha=ahead - lr * pull).add_(u, alpha=-lr * keep)
            m.mul_(momentum + (1 - momentum) * pull).add_(u, alpha=(1 - momentum) * keep)
            y.add_(m, alpha=-(lr * momentum + ahead))

    return walk
