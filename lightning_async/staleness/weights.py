"""Weights: by what factor an update of staleness s (versions, >= 0) is scaled; 1 at s = 0 and never rising."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lightning_async import spec
from lightning_async.errors import ConfigError


@dataclass(frozen=True)
class Weight:
    """`of(s)` is the factor for staleness s."""

    spec: str
    of: Callable[[int], float] = field(compare=False, repr=False)


def constant() -> Weight:
    """1 for every s."""
    return Weight(spec.call("constant"), lambda s: 1.0)


def polynomial(a: float = 0.5) -> Weight:
    """(1 + s)^-a. FedAsync (Xie et al. 2019, section 5.2); FedBuff (Nguyen et al. 2022) uses a = 0.5."""
    _positive("a", a)
    return Weight(spec.call("polynomial", a=a), lambda s: float((1 + s) ** -a))


def hinge(a: float = 10.0, b: float = 4.0) -> Weight:
    """1 while s <= b, then 1 / (a (s - b) + 1). FedAsync (Xie et al. 2019, section 5.2)."""
    _positive("a", a)
    _positive("b", b)
    return Weight(spec.call("hinge", a=a, b=b), lambda s: 1.0 if s <= b else 1.0 / (a * (s - b) + 1.0))


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"staleness weight {name}: got {value!r}, expected a number > 0")


WEIGHTS: dict[str, Callable[..., Weight]] = {"constant": constant, "polynomial": polynomial, "hinge": hinge}


def weight(value: str | Weight) -> Weight:
    """The weight that `value` names."""
    return value if isinstance(value, Weight) else spec.parse(value, WEIGHTS, "staleness weight")
