"""A worker that attacks its run, for experiments: what it computed honestly is changed before it is encoded.

The worker itself goes on from its honest update, as a broken or hostile program would. It knows no updates but its own.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping

from torch import Tensor

from lightning_async.attacks import Attack, Seen, State, attack, permit
from lightning_async.errors import ConfigError


def tampering(
    choice: str | Attack, name: str, environment: Mapping[str, str] = os.environ
) -> Callable[[Tensor], Tensor]:
    """update [n] -> what the worker called `name` sends instead. It keeps the attack's memory from call to call.

    Raises ConfigError unless `environment` marks an experiment, and for attacks that are not about the update.
    """
    permit(environment)
    made = attack(choice)
    if made.data is not None:
        raise ConfigError(f"{made.spec} poisons the data set and not the update; wrap the worker's data set in it")
    if made.speed != 1.0:
        raise ConfigError(f"{made.spec} needs a worker that is {made.speed:g}x as fast; only a simulation can make one")
    state: State = {}
    seed = zlib.crc32(name.encode()) << 20

    def tamper(update: Tensor) -> Tensor:
        nonlocal state, seed
        seed += 1
        sent, state = made.submit(update.detach().cpu(), Seen(seed=seed), state)
        return sent.to(update.device)

    return tamper
