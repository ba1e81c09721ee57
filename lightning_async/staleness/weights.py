"""Weights: by what factor an update of staleness s (versions, >= 0) is scaled; 1 at s = 0 and never rising.

A weight is never 0: an aggregator must be able to divide by the sum of them, and what counts for nothing was refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from lightning_async import spec
from lightning_async.arguments import number
from lightning_async.errors import ConfigError

LEAST = 1e-6  # where a formula says 0, or nearly


@dataclass(frozen=True)
class Weight:
    """`of(s)` is the factor for staleness s."""

    spec: str
    of: Callable[[int], float] = field(compare=False, repr=False)


def constant() -> Weight:
    """1 for every s."""
    return Weight(spec.call("constant"), lambda s: 1.0)


def polynomial(a: float = 0.5) -> Weight:
    """(1 + s)^-a. FedAsync (Xie et al. 2019, section 5.2); FedBuff (Nguyen et al. 2022) uses a = 0.5, and a = 1 divides
    the rate by the staleness (Zhang et al. 2016)."""
    number("staleness weight a", a, above=0)
    return Weight(spec.call("polynomial", a=a), lambda s: float((1 + s) ** -a))


def hinge(a: float = 10.0, b: float = 4.0) -> Weight:
    """1 while s <= b, then 1 / (a (s - b) + 1). FedAsync (Xie et al. 2019, section 5.2)."""
    number("staleness weight a", a, above=0)
    number("staleness weight b", b, above=0)
    return Weight(spec.call("hinge", a=a, b=b), lambda s: 1.0 if s <= b else 1.0 / (a * (s - b) + 1.0))


def exponential(alpha: float = 0.1) -> Weight:
    """e^(-alpha s), at least 1e-6: what an update knows fades at a constant rate. Kardam's dampening (Damaskinos et al.
    2018) and the decay in arXiv 2605.09126."""
    number("staleness weight alpha", alpha, above=0)
    return Weight(spec.call("exponential", alpha=alpha), lambda s: max(math.exp(-alpha * s), LEAST))


def cosine_gate(alpha: float = 0.1, cutoff: float = 16.0) -> Weight:
    """cos^2(pi s / (2 cutoff)) e^(-alpha s) up to s = cutoff, and 1e-6 from there on; alpha = 0 leaves the gate alone.

    Cosine-gated Adam-decay (Shah and Sun 2026, arXiv 2605.09126), of which we have read the abstract: gate x
    exponential, the gate falling smoothly to 0 at a cutoff. Half a cosine wave, and both defaults, are ours.
    """
    number("staleness weight alpha", alpha, least=0)
    number("staleness weight cutoff", cutoff, above=0)

    def of(s: int) -> float:
        gate = math.cos(math.pi * s / (2 * cutoff)) ** 2 if s < cutoff else 0.0
        return max(gate * math.exp(-alpha * s), LEAST)

    return Weight(spec.call("cosine_gate", alpha=alpha, cutoff=cutoff), of)


def product(*weights: Weight) -> Weight:
    """All of them, one factor after the other, at least 1e-6 in all; 1 where there is none."""
    if not all(isinstance(weight, Weight) for weight in weights):
        raise ConfigError(f"staleness weight product: got {weights!r}, expected weights, such as polynomial(a=0.5)")
    return Weight(spec.call("product", *weights), lambda s: max(math.prod(weight.of(s) for weight in weights), LEAST))


WEIGHTS: dict[str, Callable[..., Weight]] = {
    "constant": constant,
    "polynomial": polynomial,
    "hinge": hinge,
    "exponential": exponential,
    "cosine_gate": cosine_gate,
    "product": product,
}


def weight(value: str | Weight) -> Weight:
    """The weight that `value` names."""
    return value if isinstance(value, Weight) else spec.parse(value, WEIGHTS, "staleness weight")
