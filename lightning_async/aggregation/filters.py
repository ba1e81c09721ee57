"""Filters: rules for runs without a quorum, which judge one update at a time. Zeno++ and Kardam.

A rule over rows compares the updates of one step with each other. Here every update is its own step, so it is compared
with something else: with an update that the server's owner trusts (zeno), or with what the workers sent before
(kardam). What a filter remembers is its state, passed in and out; a server keeps it and stores it with a snapshot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_async.aggregation.aggregator import Aggregator
from lightning_async.aggregation.base import Demand, State, tolerated
from lightning_async.aggregation.closeness import closeness
from lightning_async.aggregation.coordinate import mean, trimmed_mean
from lightning_async.aggregation.sketch import sketch
from lightning_async.arguments import number, whole
from lightning_async.errors import ConfigError
from lightning_async.spec import call

FAR = 1000.0  # the distance in a verdict of what cannot be near
MODELS_KEPT = 256


@dataclass(frozen=True)
class Case:
    """An update [d] of `worker`, whose round started from version `base`; `version` is now, `voters` may submit."""

    worker: str
    update: Tensor
    base: int
    version: int
    voters: Sequence[str]
    trusted: Tensor | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether the update makes a step, and then its `factor`; else `why` not.

    `distance_z` and `cosine` are for the worker's reputation: how far from the others, and which way.
    """

    passed: bool
    factor: float = 1.0
    why: str = ""
    distance_z: float = 0.0
    cosine: float = 1.0


@dataclass(frozen=True)
class Filter:
    """Judges updates one by one; filters of one spec are equal. All functions give a new state and write nothing.

    `judge(case, state)` decides about the worker's newest update. Before it, `note(case, state)` is told every update
    as it comes, and `watch(version, parameters [d], voters, state)` every version. `demand` is on the number of voters.
    Until `ready(voters, state)`, steps are made by the aggregator `start` from the updates of as many workers as it
    needs. A filter with `every` > 0 needs an update that the server's owner trusts, a new one after so many versions.
    """

    spec: str
    judge: Callable[[Case, State], tuple[Verdict, State]] = field(compare=False, repr=False)
    start: Aggregator = field(compare=False, repr=False)
    demand: Demand = field(default=Demand(), compare=False)
    every: int = field(default=0, compare=False)
    note: Callable[[Case, State], State] | None = field(default=None, compare=False, repr=False)
    watch: Callable[[int, Tensor, Sequence[str], State], State] | None = field(default=None, compare=False, repr=False)
    ready: Callable[[Sequence[str], State], bool] | None = field(default=None, compare=False, repr=False)

    def init(self, secret: int) -> State:
        """The state before the first update."""
        return {"secret": torch.tensor(secret), "passed": torch.tensor(0)}


def zeno(rho: float, epsilon: float = 0.0, every: int = 1) -> Filter:
    """Accepts update g where <v, g> >= rho |v|^2 - epsilon, g scaled to the length of the trusted update v.

    That is a cosine of at least rho - epsilon / |v|^2; the step is g at the length of v. Any number of workers may be
    hostile. Needs v: what an honest worker would send now (in update mode a round, in gradient mode a gradient),
    computed from data that the server's owner trusts, anew after `every` versions. A zero update or a zero v: refused.
    Source: Xie et al. 2020, Zeno++, definition 2 and algorithm 2 (rho here is its rho / gamma).
    """
    number("zeno rho, which is compared with a cosine", rho, above=-1, below=1)
    number("zeno epsilon", epsilon, least=0)
    whole("zeno every", every, 1)

    def judge(case: Case, state: State) -> tuple[Verdict, State]:
        if case.trusted is None:
            raise ConfigError("zeno judges against an update that the server's owner trusts, and none is there")
        length, trusted = float(case.update.norm()), float(case.trusted.norm())
        cosine = closeness([case.update], case.trusted)[1][0]
        if length == 0.0 or trusted == 0.0 or not math.isfinite(length):
            return Verdict(False, why="its length says nothing", distance_z=FAR, cosine=cosine), state
        if cosine * trusted**2 < rho * trusted**2 - epsilon:
            why = f"cosine {cosine:.2f} to the trusted update"
            return Verdict(False, why=why, distance_z=FAR, cosine=cosine), state
        return Verdict(True, trusted / length, cosine=cosine), state

    return Filter(call("zeno", rho=rho, epsilon=epsilon, every=every), judge, mean(), every=every)


def kardam(f: int, decay: float = 0.1) -> Filter:
    """Accepts a worker's update where the slope |g - g'| / |x - x'| to its last one at another model is not too steep.

    Too steep: above the (n - f) / n quantile of the latest slopes of all n workers. Of any 2f + 1 updates accepted in
    a row no two are one worker's. An accepted update weighs exp(-decay x staleness). n > 3f live workers; while more
    than f of them have no slope yet, steps are trimmed_mean(f) of 2f + 1 workers' updates.
    Gradients must be nearly Lipschitz, all workers' alike: where the workers' data differ, the steep slopes are honest
    ones, what only those workers know is lost, and the filter does not hold (docs/aggregation.md has numbers). An
    attacker that always sends the same vector has the slope 0 and is not seen.
    Remembers a few sketches a worker and one a version. Source: Damaskinos et al. 2018, sections 3.1 and 3.2.
    """
    number("kardam decay", decay, above=0)
    least = 3 * tolerated("kardam", f) + 1

    def judge(case: Case, state: State) -> tuple[Verdict, State]:
        slopes, own = sorted(_slope(name, state) for name in case.voters), _slope(case.worker, state)
        passed, last = int(state["passed"]), int(state.get(f"passed/{case.worker}", -least))
        steep = _steepness(own, slopes)
        if own == math.inf:
            return Verdict(False, why="not seen at two models yet"), state
        if own > slopes[len(slopes) - f - 1]:
            return Verdict(False, why=f"slope {own:.3g}, among the {f} steepest", distance_z=steep), state
        if passed - last < 2 * f:
            return Verdict(False, why=f"one of the last {2 * f} accepted"), state
        after = {**state, f"passed/{case.worker}": torch.tensor(passed), "passed": torch.tensor(passed + 1)}
        return Verdict(True, dampening(case.version - case.base, decay), distance_z=steep), after

    return Filter(
        call("kardam", f=f, decay=decay),
        judge,
        trimmed_mean(f),
        Demand(least, f"n > 3f = {3 * f}"),
        note=_note,
        watch=_watch,
        ready=lambda voters, state: sum(_slope(name, state) == math.inf for name in voters) <= f,
    )


def dampening(staleness: int, decay: float) -> float:
    """Kardam's weight of a stale gradient, exp(-decay x staleness), in (0, 1]."""
    return math.exp(-decay * staleness)


def _slope(worker: str, state: State) -> float:
    return float(state.get(f"slope/{worker}", math.inf))


def _steepness(own: float, slopes: Sequence[float]) -> float:
    """How many times steeper than the median of the sorted slopes, from 0 for the median itself; at most FAR."""
    middle = slopes[(len(slopes) - 1) // 2]
    return min(FAR, max(0.0, own / middle - 1.0)) if 0.0 < middle < math.inf > own else 0.0


def _note(case: Case, state: State) -> State:
    """Take in an update: its slope to the worker's last one whose round had started from another version.

    One from a version that is not remembered any more leaves its worker without a slope.
    """
    worker, model = case.worker, state.get(f"model/{case.base}")
    last, before = _memory("last", worker, state), _memory("before", worker, state)
    kept = {key: value for key, value in state.items() if key != f"slope/{worker}"}
    if model is None:
        return kept
    new = {"update": sketch(case.update, int(state["secret"])), "model": model, "base": torch.tensor(case.base)}
    before = last if last and int(last["base"]) != case.base else before
    for when, memory in (("last", new), ("before", before)):
        kept |= {f"{when}/{part}/{worker}": value for part, value in memory.items()}
    if before:
        apart, far = float((new["update"] - before["update"]).norm()), float((model - before["model"]).norm())
        kept[f"slope/{worker}"] = torch.tensor(apart / far if far > 0.0 else math.inf, dtype=torch.float64)
    return kept


def _memory(when: str, worker: str, state: State) -> State:
    keys = {part: f"{when}/{part}/{worker}" for part in ("update", "model", "base")}
    return {part: state[key] for part, key in keys.items() if key in state}


def _watch(version: int, parameters: Tensor, voters: Sequence[str], state: State) -> State:
    """Remember the model of this version; forget old ones, and workers that have gone."""
    there = set(voters)
    worker = ("last/", "before/", "slope/", "passed/")
    kept = {
        key: value
        for key, value in state.items()
        if not (key.startswith(worker) and _named(key) not in there)
        and not (key.startswith("model/") and int(key[6:]) <= version - MODELS_KEPT)
    }
    return {**kept, f"model/{version}": sketch(parameters, int(state["secret"]))}


def _named(key: str) -> str:
    """The worker in a key: `slope/NAME` or `last/part/NAME`; a name may hold any character."""
    return key.split("/", 1 if key.startswith(("slope/", "passed/")) else 2)[-1]
