"""Delay compensation: a late update is corrected for what the parameters did since its round began."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_async import spec
from lightning_async.arguments import number, whole
from lightning_async.errors import ConfigError
from lightning_async.outer.base import Outer, State, Update, bind, counter, strips, zeros
from lightning_async.outer.momentum import sgd

EPS = 1e-7
PAST, SQUARE, STEPS = "delay/past", "delay/mean_square", "delay/steps"


def delay_compensated(inner: Outer | None = None, lam: float = 2.0, decay: float | None = 0.95, keep: int = 8) -> Outer:
    """`inner` along u + lam_t u u (x - x_old), elementwise, where x_old are the parameters that the update's round
    began from: u u stands for the diagonal of the Hessian in the Taylor expansion of the gradient at x.

    M <- decay M + (1 - decay) u u; lam_t = lam / sqrt(M + 1e-7). `decay` None: lam_t = lam; then lam has the unit of
    1 / u. The last `keep` versions are held, keep x 4 bytes a parameter; an update from before them is compensated as
    one of the oldest. Of a step made of several updates, x_old is their mean by share.

    DC-ASGD (Zheng et al. 2017, arXiv 1609.08326), made for gradients; the formulas and constants of its adaptive form
    are from memory and from public implementations. With `decay` the correction hardly depends on the unit of u, which
    is why it is the default for pseudo-gradients.
    """
    inner = sgd() if inner is None else inner
    if not isinstance(inner, Outer) or PAST in inner.init(1):
        raise ConfigError(f"delay_compensated: got {inner!r}, expected an outer optimizer without delay compensation")
    number("outer lam", lam, least=0)
    if decay is not None:
        number("outer decay", decay, least=0, below=1)
    whole("outer keep", keep, 2)
    return _compensated(inner, lam, decay, keep)


def _compensated(inner: Outer, lam: float, decay: float | None, keep: int) -> Outer:
    def init(d: int) -> State:
        own = {PAST: torch.zeros(keep, d, dtype=torch.float32), STEPS: counter()}
        return inner.init(d) | own | ({} if decay is None else {SQUARE: zeros(d)})

    def move(parameters: Tensor, update: Update, state: State) -> State:
        done = int(state[STEPS])
        state[STEPS] += 1
        state[PAST][done % keep] = parameters
        starts = [(state[PAST][_place(done, age, keep)], share) for age, share in update.ages if age and share]
        square = state.get(SQUARE)
        if square is not None and decay is not None:
            for u, s in strips(update.vector, square):
                s.mul_(decay).addcmul_(u, u, value=1 - decay)
        vector = _corrected(parameters, update.vector, starts, lam, square) if starts else update.vector
        own = {key: state[key] for key in (PAST, STEPS, SQUARE) if key in state}
        rest = {key: value for key, value in state.items() if key not in own}
        return inner.move(parameters, Update(vector, update.scale, update.ages), rest) | own

    def like(d: int) -> State:
        return init(d) | (inner.like(d) if inner.like is not None else {})

    def bound(sizes: Sequence[int], workers: int) -> Outer:
        return _compensated(bind(inner, sizes, workers), lam, decay, keep)

    text = spec.call("delay_compensated", inner, lam=lam, decay=decay, keep=keep)
    return Outer(text, init, move, inner.weight, bound, like)


def _place(done: int, age: int, keep: int) -> int:
    """Where the parameters of `age` versions ago stand, or the oldest there are."""
    return (done - min(age, done, keep - 1)) % keep


def _corrected(
    parameters: Tensor, vector: Tensor, starts: Sequence[tuple[Tensor, float]], lam: float, square: Tensor | None
) -> Tensor:
    """u + lam_t u u sum of share (x - x_old), a new vector [d]."""
    out = torch.empty_like(vector)
    olds = [old for old, _ in starts]
    squares = [] if square is None else [square]
    for to, x, u, *rest in strips(out, parameters, vector, *olds, *squares):
        drift = torch.zeros_like(x)
        for old, (_, share) in zip(rest, starts, strict=False):
            drift.add_(x, alpha=share).sub_(old, alpha=share)
        if square is not None:
            drift.div_(rest[-1].add(EPS).sqrt_())
        torch.mul(u, u, out=to).mul_(drift).mul_(lam).add_(u)
    return out
