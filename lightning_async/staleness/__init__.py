"""How old an update may be (policies), and how much less an old one counts (weights)."""

from lightning_async.staleness.pace import Pace, Rate
from lightning_async.staleness.policies import POLICIES, Policy, Sight, adaptive, fixed, policy, unbounded
from lightning_async.staleness.weights import (
    WEIGHTS,
    Weight,
    constant,
    cosine_gate,
    exponential,
    hinge,
    polynomial,
    product,
    weight,
)

__all__ = [
    "POLICIES",
    "WEIGHTS",
    "Pace",
    "Policy",
    "Rate",
    "Sight",
    "Weight",
    "adaptive",
    "constant",
    "cosine_gate",
    "exponential",
    "fixed",
    "hinge",
    "policy",
    "polynomial",
    "product",
    "unbounded",
    "weight",
]
