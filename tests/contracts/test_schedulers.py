"""What every scheduler promises, whatever the market: the index of a unit, or None where there is no more to do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_async.errors import ConfigError
from lightning_async.scheduling import (
    SCHEDULERS,
    Capability,
    Held,
    Market,
    Scheduler,
    Telemetry,
    Unit,
    Worker,
    capability,
    gale_shapley,
    priority,
    scheduler,
)

SPECS = {name: f"{name}()" for name in SCHEDULERS} | {"own": f"own(path='{__name__}:last')"}
SPECS |= {"of units": "gale_shapley(proposers='units')", "slack": "capability(slack=2.0)"}


def last(market: Market) -> int | None:
    """A user's own."""
    return len(market.units) - 1


def nonsense(market: Market) -> Any:
    return len(market.units)


def passing(market: Market) -> int | None:
    return None


def unit(start: int, size: int, number: int = 0, before: str = "", wear: int = 0) -> Unit:
    return Unit((Held((number, start, start + size), 0.0, before, wear),))


def worker(name: str, rate: float, held: int = 0, reliability: float = 1.0, **machine: int) -> Worker:
    telemetry = Telemetry(held=held, reliability=reliability)
    return Worker(name=name, seconds=lambda n: n * rate, capability=Capability(**machine), telemetry=telemetry)


@st.composite
def markets(draw: st.DrawFn) -> Market:
    workers, units = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    names = "abcdef"
    return Market(
        workers=tuple(
            worker(
                names[i],
                draw(st.sampled_from([0.0, 0.01, 0.5, 0.5, 100.0])),
                draw(st.integers(0, 1000)),
                draw(st.floats(0.0, 1.0)),
                memory_bytes=draw(st.sampled_from([0, 2**30, 2**40])),
            )
            for i in range(workers)
        ),
        units=tuple(
            unit(i * 100, draw(st.integers(1, 100)), draw(st.integers(0, 3)), draw(st.sampled_from(["", *names])), 0)
            for i in range(units)
        ),
        newest=3,
        more=draw(st.booleans()),
    )


@pytest.mark.parametrize("name", SPECS)
@settings(deadline=None)
@given(market=markets())
def test_it_gives_a_unit_and_always_the_same_and_passes_nobody_over_while_there_is_more(
    name: str, market: Market
) -> None:
    rule = scheduler(SPECS[name])
    index = rule.choose(market)
    assert index is None or 0 <= index < len(market.units)
    assert rule.choose(market) == index
    assert index is not None or not market.more


@pytest.mark.parametrize("name", SPECS)
@settings(deadline=None)
@given(market=markets())
def test_when_all_ask_in_turn_everything_is_handed_out(name: str, market: Market) -> None:
    """No unit is left that everybody is passed over for."""
    rule, units = scheduler(SPECS[name]), list(market.units)
    workers = list(market.workers)
    for _ in range(len(units) * len(workers) + len(workers)):
        if not units:
            break
        index = rule.choose(Market(workers=tuple(workers), units=tuple(units), newest=3))
        if index is not None:
            asked = workers[0]
            more = Telemetry(held=asked.telemetry.held + units.pop(index).size, reliability=asked.telemetry.reliability)
            workers[0] = Worker(name=asked.name, seconds=asked.seconds, capability=asked.capability, telemetry=more)
        workers = workers[1:] + workers[:1]
    assert not units


@pytest.mark.parametrize("name", SPECS)
def test_one_worker_alone_gets_work(name: str) -> None:
    market = Market(workers=(worker("a", 1.0),), units=(unit(0, 4), unit(4, 4)), newest=0)
    assert scheduler(SPECS[name]).choose(market) is not None


def test_capability_keeps_the_last_unit_for_those_who_are_through_sooner() -> None:
    slow, fast = worker("slow", 10.0), worker("fast", 0.1, held=20)
    assert capability().choose(Market(workers=(slow, fast), units=(unit(0, 10),), newest=0)) is None
    assert capability().choose(Market(workers=(fast, slow), units=(unit(0, 10),), newest=0)) == 0
    many = tuple(unit(i * 10, 10) for i in range(200))
    assert capability().choose(Market(workers=(slow, fast), units=many, newest=0)) == 97, "when it can help, it does"
    assert capability(slack=40.0).choose(Market(workers=(slow, fast), units=(unit(0, 10),), newest=0)) == 0


def test_priority_takes_what_is_old_and_what_the_worker_has_had() -> None:
    units = (unit(0, 10, number=2), unit(10, 10, number=1), unit(20, 10, number=2, before="a"))
    market = Market(workers=(worker("a", 1.0),), units=units, newest=2)
    assert priority().choose(market) == 1
    assert priority(age=0.0).choose(market) == 2
    assert priority(age=0.0, locality=0.0, size=1.0).choose(market) == 0


def test_gale_shapley_gives_what_is_old_to_whom_it_can_be_trusted() -> None:
    """Both like the large unit better; it would rather be with the one that loses nothing."""
    steady, flighty = worker("steady", 1.0), worker("flighty", 1.0, reliability=0.3)
    units = (unit(0, 40, number=0), unit(40, 10, number=3))
    rule = gale_shapley(time=0.0)
    assert rule.choose(Market(workers=(flighty, steady), units=units, newest=3)) == 1
    assert rule.choose(Market(workers=(steady, flighty), units=units, newest=3)) == 0


def test_memory_bandwidth_and_speed_tell_workers_apart() -> None:
    units = (unit(0, 40), unit(40, 10))

    def first(rule: Scheduler, favoured: Worker) -> int | None:
        return rule.choose(Market(workers=(worker("other", 1.0), favoured), units=units, newest=0))

    nothing = {"time": 0.0, "reliability": 0.0, "memory": 0.0, "bandwidth": 0.0, "locality": 0.0}
    large = worker("large", 1.0, memory_bytes=2**40)
    wide = Worker(name="wide", seconds=lambda n: float(n), telemetry=Telemetry(bytes_per_s=1e9))
    quick = worker("quick", 0.1)
    for weight, favoured in (("memory", large), ("bandwidth", wide)):
        assert first(gale_shapley(**{**nothing, weight: 1.0}), favoured) == 1
        assert first(gale_shapley(**nothing), favoured) == 0
    assert first(gale_shapley(**{**nothing, "time": 0.1}), quick) == 1


def test_who_proposes_gets_the_better_of_two_stable_matchings() -> None:
    """Each worker would rather have the unit that it has had before; each unit would rather have the other worker."""
    units = (unit(0, 10, number=1, before="a"), unit(10, 10, number=0, before="b"))
    a, b = worker("a", 1.0, reliability=1.0), worker("b", 1.0, reliability=0.5, memory_bytes=2**30)
    weights = {"time": 0.0, "reliability": 1.0, "memory": 0.75, "size": 0.0, "age": 1.0, "locality": 1.0}
    market = Market(workers=(a, b), units=units, newest=1)
    found = {who: gale_shapley(proposers=who, **weights).choose(market) for who in ("workers", "units")}
    assert found == {"workers": 0, "units": 1}


@pytest.mark.parametrize(
    "text",
    ["capability(slack=0.5)", "priority(age=-1.0)", "gale_shapley(proposers='nobody')", "gale_shapley(time=True)",
     "own(path='no_such_module:f')", "own(path='math')", "own(path='math:pi')"],
)  # fmt: skip
def test_what_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        scheduler(text)


def test_a_function_of_the_users_that_gives_nonsense_is_told_so() -> None:
    market = Market(workers=(worker("a", 1.0),), units=(unit(0, 4),), newest=0)
    with pytest.raises(ConfigError, match="gave 1, expected None or the index of one of 1 units"):
        scheduler(f"own(path='{__name__}:nonsense')").choose(market)
    assert scheduler(f"own(path='{__name__}:passing')").choose(market) is None
