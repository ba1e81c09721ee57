"""Policies: the staleness, in versions, beyond which an update is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from lightning_async import spec
from lightning_async.arguments import number, whole
from lightning_async.errors import ConfigError
from lightning_async.staleness.pace import Pace, Rate

SLACK = 0.5  # of the expectation, until a worker's deviations are known: what TCP begins with


@dataclass(frozen=True)
class Sight:
    """What the server knows about a worker when its update arrives at time `now`."""

    pace: Pace
    rate: Rate
    live: int
    now: float


@dataclass(frozen=True)
class Policy:
    """`of(sight)` is the largest staleness that is accepted from a worker, in versions; it is never more than `bound`
    (math.inf for none)."""

    spec: str
    bound: float
    of: Callable[[Sight], float] = field(compare=False, repr=False)


def fixed(bound: int = 50) -> Policy:
    """The same bound for every worker; 0 makes training synchronous. Stale-synchronous parallel, Ho et al. 2013."""
    whole("staleness bound", bound, 0)
    return Policy(spec.call("fixed", bound=bound), bound, lambda sight: bound)


def adaptive(deviations: float = 4.0, floor: float = 2.0, ceiling: float = 200.0) -> Policy:
    """E + deviations x D, rounded up, at least floor x live and at most ceiling x live workers; one bound each.

    E: versions expected during a round of this worker, rate x its usual round, both moving averages. D: mean error of
    that expectation so far. In a run of n equal workers an update is about n versions old, hence floor and ceiling for
    each live worker; the slowest of n workers is at most n x (fastest speed / slowest speed) versions behind, so the
    ceiling is about the largest ratio of speeds that is borne. Until a worker's first update E is from the time since
    it was given parameters; before the run has a rate, anything up to the ceiling is accepted.

    Ours; as the timeout of TCP, mean + 4 deviations (Jacobson 1988, RFC 6298).
    """
    for name, value in {"deviations": deviations, "floor": floor, "ceiling": ceiling}.items():
        number(f"staleness {name}", value, least=0)
    if ceiling < max(floor, 1.0):
        raise ConfigError(f"staleness ceiling: got {ceiling!r}, expected at least 1 and the floor, {floor!r}")

    def of(sight: Sight) -> float:
        live = max(1, sight.live)
        expected, error = _foreseen(sight)
        least, most = max(1, math.ceil(floor * live)), math.ceil(ceiling * live)
        reach = expected + deviations * error
        return most if reach >= most else max(least, math.ceil(reach))

    return Policy(spec.call("adaptive", deviations=deviations, floor=floor, ceiling=ceiling), math.inf, of)


def _foreseen(sight: Sight) -> tuple[float, float]:
    """(E, D) of the round that has just ended, from the rounds before it."""
    pace = sight.pace
    usual = pace.round_s.value
    if usual is None:
        usual = math.inf if pace.since is None else max(0.0, sight.now - pace.since)
    expected = sight.rate.expected(usual, sight.live)
    expected = math.inf if expected is None else expected
    return expected, SLACK * expected if pace.error.value is None else pace.error.value


def unbounded() -> Policy:
    """Nothing is too old; choose a weight that falls with staleness."""
    return Policy(spec.call("unbounded"), math.inf, lambda sight: math.inf)


POLICIES: dict[str, Callable[..., Policy]] = {"fixed": fixed, "adaptive": adaptive, "unbounded": unbounded}


def policy(value: str | int | Policy) -> Policy:
    """The policy that `value` names; an integer is a fixed bound."""
    if isinstance(value, Policy):
        return value
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    return fixed(value) if isinstance(value, int) else spec.parse(value, POLICIES, "staleness policy")
