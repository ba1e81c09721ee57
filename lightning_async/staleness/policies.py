"""Policies: the staleness, in versions, beyond which an update is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lightning_async import spec
from lightning_async.errors import ConfigError


@dataclass(frozen=True)
class Policy:
    """`bound` is the largest staleness that is still accepted, in versions (math.inf for none)."""

    spec: str
    bound: float


def fixed(bound: int = 50) -> Policy:
    """The same bound for every worker; 0 makes training synchronous. Stale-synchronous parallel, Ho et al. 2013."""
    if isinstance(bound, bool) or not isinstance(bound, int) or bound < 0:
        raise ConfigError(f"staleness bound: got {bound!r}, expected an integer >= 0")
    return Policy(spec.call("fixed", bound=bound), bound)


def unbounded() -> Policy:
    """Nothing is too old; choose a weight that falls with staleness."""
    return Policy(spec.call("unbounded"), math.inf)


POLICIES: dict[str, Callable[..., Policy]] = {"fixed": fixed, "unbounded": unbounded}


def policy(value: str | int | Policy) -> Policy:
    """The policy that `value` names; an integer is a fixed bound."""
    if isinstance(value, Policy):
        return value
    return fixed(value) if isinstance(value, int) else spec.parse(value, POLICIES, "staleness policy")
