"""Attacks, for tests and experiments: `attack("fast(sign_flip(k=10.0), speed=10.0)")`, or the factories themselves."""

from __future__ import annotations

from collections.abc import Callable

from lightning_async.attacks.alone import gaussian_noise, random, scale, sign_flip, zero
from lightning_async.attacks.base import MARK, Attack, Seen, State, permit
from lightning_async.attacks.colluding import alie, alie_z, ipm, mimic
from lightning_async.attacks.labels import FlippedLabels, label_flip
from lightning_async.attacks.timing import fast, slow_drip, stale_replay
from lightning_async.errors import ConfigError
from lightning_async.spec import parse

ATTACKS: dict[str, Callable[..., Attack]] = {
    "sign_flip": sign_flip,
    "scale": scale,
    "gaussian_noise": gaussian_noise,
    "zero": zero,
    "random": random,
    "alie": alie,
    "ipm": ipm,
    "mimic": mimic,
    "label_flip": label_flip,
    "stale_replay": stale_replay,
    "slow_drip": slow_drip,
    "fast": fast,
}
__all__ = [
    "ATTACKS",
    "MARK",
    "Attack",
    "FlippedLabels",
    "Seen",
    "State",
    "alie",
    "alie_z",
    "attack",
    "fast",
    "gaussian_noise",
    "ipm",
    "label_flip",
    "mimic",
    "permit",
    "random",
    "scale",
    "sign_flip",
    "slow_drip",
    "stale_replay",
    "zero",
]


def attack(choice: str | Attack) -> Attack:
    """The attack that `choice` is or names. Raises ConfigError for anything else."""
    made = parse(choice, ATTACKS, "attack") if isinstance(choice, str) else choice
    if not isinstance(made, Attack):
        raise ConfigError(f"got {made!r} for an attack; give a spec such as 'sign_flip(k=10.0)'")
    return made
