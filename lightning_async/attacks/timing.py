"""Attacks that need several steps: stale_replay, slow_drip, fast."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_async.arguments import number, whole
from lightning_async.attacks.base import Attack, Seen, State, known
from lightning_async.errors import ConfigError
from lightning_async.spec import call


def stale_replay(delay: int = 5) -> Attack:
    """Sends one update again for `delay` more steps, under a fresh sequence number, then takes a new one."""
    whole("stale_replay delay", delay, 1)

    def submit(own: Tensor, seen: Seen, state: State) -> tuple[Tensor, State]:
        left = int(state["left"]) if state else 0
        if left == 0:
            return own, {"kept": own.clone(), "left": torch.tensor(delay)}
        return state["kept"].clone(), {"kept": state["kept"], "left": torch.tensor(left - 1)}

    return Attack(call("stale_replay", delay=delay), submit)


def slow_drip(factor: float = 3.0, share: float = 0.95) -> Attack:
    """The same random direction every step, as long as a norm bound lets pass: share x factor x the median honest norm.

    `factor` is the server's norm bound, in running medians. The direction is drawn from the seed of the first step.
    """
    number("slow_drip factor", factor)
    number("slow_drip share", share)

    def submit(own: Tensor, seen: Seen, state: State) -> tuple[Tensor, State]:
        direction = state.get("direction")
        if direction is None:
            direction = torch.nn.functional.normalize(torch.randn(own.shape, generator=seen.generator()), dim=0)
        bound = factor * known(seen, own).norm(dim=1).median()
        return direction * (share * bound), {"direction": direction}

    return Attack(call("slow_drip", factor=factor, share=share), submit)


def fast(attack: Attack, speed: float = 10.0) -> Attack:
    """`attack` by a worker that submits `speed` times as often: for each update of an honest one, that many votes."""
    number("fast speed", speed, above=0)
    if not isinstance(attack, Attack):
        raise ConfigError(f"fast: got {attack!r}, expected an attack, as in fast(zero(), 10.0)")
    return Attack(call("fast", attack, speed=speed), attack.submit, attack.data, speed * attack.speed)
