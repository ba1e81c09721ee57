"""Attacks that know the honest updates and hide among them: alie, ipm, mimic."""

from __future__ import annotations

from statistics import NormalDist

from torch import Tensor

from lightning_async.arguments import number, whole
from lightning_async.attacks.base import Attack, Seen, known, stateless
from lightning_async.spec import call


def alie(z: float | None = None) -> Attack:
    """A little is enough: mean - z x standard deviation of the honest updates, per coordinate.

    z None: the largest z that still has enough honest workers further out (`alie_z`). Source: Baruch et al. 2019.
    """
    if z is not None:
        number("alie z", z)

    def send(own: Tensor, seen: Seen) -> Tensor:
        honest = known(seen, own)
        shift = alie_z(seen.n, seen.f) if z is None else z
        return honest.mean(0) - shift * honest.std(0, correction=0)

    return stateless(call("alie") if z is None else call("alie", z=z), send)


def alie_z(n: int, f: int) -> float:
    """z with P(N(0, 1) < z) = (n - f - s) / (n - f), s = floor(n / 2 + 1) - f: s honest workers make a majority."""
    supporters = n // 2 + 1 - f
    share = (n - f - supporters) / (n - f) if n > f else 0.5
    return NormalDist().inv_cdf(min(max(share, 1e-6), 1.0 - 1e-6))


def ipm(epsilon: float = 0.5) -> Attack:
    """Inner-product manipulation: -epsilon x the mean of the honest updates. Source: Xie et al. 2020."""
    number("ipm epsilon", epsilon)
    return stateless(call("ipm", epsilon=epsilon), lambda own, seen: known(seen, own).mean(0) * -epsilon)


def mimic(target: int = 0) -> Attack:
    """A copy of one honest worker's update, so that its data count more often. Source: Karimireddy et al. 2022."""
    whole("mimic target", target, 0)

    def send(own: Tensor, seen: Seen) -> Tensor:
        honest = known(seen, own)
        return honest[target % len(honest)].clone()

    return stateless(call("mimic", target=target), send)
