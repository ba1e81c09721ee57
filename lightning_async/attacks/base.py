"""What a Byzantine worker may do: a function of what it knows, with its memory passed in and out.

An attack changes the update that its worker would have sent (`submit`), the data that it trains on (`data`), or how
often it submits (`speed`). It knows as much as its paper grants it: `Seen` holds the honest updates of the step for
attacks that collude. These exist to test defences; `permit` keeps them out of runs that are not marked as experiments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_async.errors import ConfigError

State: TypeAlias = dict[str, Tensor]
MARK = "LIGHTNING_ASYNC_EXPERIMENT"


@dataclass(frozen=True, eq=False)
class Seen:
    """What an attacker knows besides its own update: the honest updates, n, f, and the seed of its random choices."""

    honest: Sequence[Tensor] = ()
    n: int = 1
    f: int = 1
    seed: int = 0

    def generator(self) -> torch.Generator:
        """A random source of this seed alone."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Attack:
    """`submit(own [d], seen, state)` gives (what is sent [d], new state) and never writes its inputs.

    `data(dataset)` is the poisoned dataset, or None for an attack that leaves the data alone. `speed` is how many times
    as often as an honest worker of the same machine it submits. Attacks of one spec are equal.
    """

    spec: str
    submit: Callable[[Tensor, Seen, State], tuple[Tensor, State]] = field(compare=False, repr=False)
    data: Callable[[Any], Any] | None = field(default=None, compare=False, repr=False)
    speed: float = field(default=1.0, compare=False)


def stateless(spec: str, send: Callable[[Tensor, Seen], Tensor]) -> Attack:
    """An attack without memory, from own update and what is seen -> what is sent."""
    return Attack(spec, lambda own, seen, state: (send(own, seen), state))


def known(seen: Seen, own: Tensor) -> Tensor:
    """[k, d]: the honest updates; an attacker that sees none has its own one."""
    return torch.stack(list(seen.honest) or [own])


def permit(environment: Mapping[str, str]) -> None:
    """Raises ConfigError unless the environment marks this run as an experiment."""
    if environment.get(MARK) != "1":
        raise ConfigError(
            f"got an attack in a run that is not marked as an experiment; set {MARK}=1 for it, or remove the attack"
        )
