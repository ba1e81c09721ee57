"""Attacks that need only the attacker's own update: sign_flip, scale, gaussian_noise, zero, random."""

from __future__ import annotations

import torch

from lightning_async.arguments import number
from lightning_async.attacks.base import Attack, Seen, stateless
from lightning_async.spec import call


def sign_flip(k: float = 1.0) -> Attack:
    """-k x own: steps back along the descent direction, k times as far."""
    number("sign_flip k", k)
    return stateless(call("sign_flip", k=k), lambda own, _: own * -k)


def scale(k: float) -> Attack:
    """k x own: honest direction, dishonest length."""
    number("scale k", k)
    return stateless(call("scale", k=k), lambda own, _: own * k)


def gaussian_noise(sigma: float = 1.0) -> Attack:
    """own + noise, whose standard deviation is sigma x the root mean square of own."""
    number("gaussian_noise sigma", sigma)

    def send(own: torch.Tensor, seen: Seen) -> torch.Tensor:
        noise = torch.randn(own.shape, generator=seen.generator())
        return own + noise * (sigma * own.square().mean().sqrt())

    return stateless(call("gaussian_noise", sigma=sigma), send)


def zero() -> Attack:
    """Nothing at all: the free rider, and the slowest of poisons."""
    return stateless(call("zero"), lambda own, _: torch.zeros_like(own))


def random(k: float = 1.0) -> Attack:
    """A random direction of length k x |own|, another one each step."""
    number("random k", k)

    def send(own: torch.Tensor, seen: Seen) -> torch.Tensor:
        noise = torch.randn(own.shape, generator=seen.generator())
        length = k * float(own.norm())
        return noise * (length / float(noise.norm()))

    return stateless(call("random", k=k), send)
