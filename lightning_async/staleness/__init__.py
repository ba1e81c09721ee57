"""How old an update may be (policies), and how much less an old one counts (weights)."""

from lightning_async.staleness.policies import POLICIES, Policy, fixed, policy, unbounded
from lightning_async.staleness.weights import WEIGHTS, Weight, constant, hinge, polynomial, weight

__all__ = [
    "POLICIES",
    "WEIGHTS",
    "Policy",
    "Weight",
    "constant",
    "fixed",
    "hinge",
    "policy",
    "polynomial",
    "unbounded",
    "weight",
]
