"""Filters for runs without a quorum: one update at a time, accepted or not. Zeno++ and Kardam, as pure functions.

A server wires them up and keeps their state; each docstring says what the filter assumes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from lightning_async.aggregation.base import positive, tolerated


def zeno(update: Tensor, validation: Tensor, rho: float, gamma: float = 1.0, epsilon: float = 0.0) -> Tensor | None:
    """The update at the validation gradient's length, or None where its score is too low.

    With g = update |validation| / |update|: accepted where gamma <validation, g> - rho |g|^2 >= -gamma epsilon.
    Any number of attackers; needs a fresh gradient of data that the server's owner trusts.
    Both [d], in the same sense (gradient with gradient, pseudo-gradient with pseudo-gradient). A zero update, or a
    zero validation gradient, tells nothing: None. Source: Xie et al. 2020, Zeno++, definition 2.
    """
    positive("zeno", rho=rho, gamma=gamma)
    length, trusted = float(update.norm()), float(validation.norm())
    if length == 0.0 or trusted == 0.0:
        return None
    scaled = update * (trusted / length)
    score = gamma * float(validation @ scaled) - rho * trusted**2
    return scaled if score >= -gamma * epsilon else None


def lipschitz(update: Tensor, before: Tensor, base: Tensor, base_before: Tensor) -> float:
    """|g - g'| / |x - x'| of one worker's last two gradients and the models they were taken at; inf where x = x'."""
    moved = float((base - base_before).norm())
    return float((update - before).norm()) / moved if moved > 0.0 else math.inf


def kardam_passes(coefficient: float, others: Sequence[float], f: int) -> bool:
    """Whether a worker's Lipschitz coefficient is within the (n - f) / n quantile of all n workers' latest ones.

    `others` are the n latest coefficients, this worker's included; n > 3f. Gradients must be nearly Lipschitz,
    and a limit on how often each worker is accepted must stand beside this filter (one slot per worker is one).
    Source: Damaskinos et al. 2018, section 3.1.
    """
    n = len(others)
    if n <= 3 * tolerated("kardam", f):
        return False
    return coefficient <= sorted(others)[n - f - 1]


def dampening(staleness: int, decay: float) -> float:
    """Kardam's weight of a stale gradient, exp(-decay x staleness), in (0, 1]."""
    positive("kardam", decay=decay)
    return math.exp(-decay * staleness)
