"""What a round of a run costs on a measured line, and whether another codec or round length would suit it better.

All arithmetic is the planner's (simulation/planning.py): this machine on its line, and the run's other live workers on
good ones, at the pace that the server has seen of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from lightning_async.links.link import MEGABIT, Link
from lightning_async.scheduling import sizing
from lightning_async.simulation.planning import Demand, Machine, Plan, predict, recommend, sizes

TARGET = 0.95  # of the time computing, which `plan` aims at too
WIDE = Link(up_mbps=1e5, down_mbps=1e5)  # the server's own line, of which nothing is known
BETTER = 0.02  # more of the time computing is worth another configuration


@dataclass(frozen=True)
class Cost:
    """One round on this line. `seconds` is its exchange; `hidden` the share of that which computing covers, and
    `utilisation` the share of the time that is computing, both None without a step's time. `advice`: a better plan."""

    local_steps: int
    upload_bytes: int
    download_bytes: int
    seconds: float
    step_s: float | None
    hidden: float | None
    utilisation: float | None
    hiding_step_s: float
    advice: Plan | None


def cost(state: Mapping[str, Any], line: Link, step_s: float | None) -> Cost | None:
    """Of a round of the run with this status; None while it has no parameters."""
    parameters, config = int(state["parameters"]), state["config"]
    if not parameters:
        return None
    fragments = int(config.get("fragments", 1))
    rule = sizing(config["local_steps"])
    others = _others(state)
    steps = max((row["round_steps"] for row in others), default=0) or rule.first
    step_s = step_s or median([row["step_s"] for row in others if row.get("step_s")] or [0.0]) or None
    if step_s is None:
        upload, delta = sizes(parameters, config["compression"], config["download_compression"])
        down = min(4.0 * parameters, max(1, len(others)) * delta) / fragments
        return _cost(steps, upload / fragments, down, line, None, None)
    plan, advice = _planned(state, parameters, line, step_s, steps, others)
    return _cost(steps, plan.upload_bytes / fragments, plan.download_bytes[0] / fragments, line, step_s, advice)


def _planned(
    state: Mapping[str, Any], parameters: int, line: Link, step_s: float, steps: int, others: list[Mapping[str, Any]]
) -> tuple[Plan, Plan | None]:
    """(what to expect of the run as it is, what would be better)."""
    config = state["config"]
    machines = [Machine(step_s=step_s, link=line)]
    machines += [Machine(step_s=row["round_s"] / max(1, row["round_steps"]), link=Link()) for row in others]
    demand = Demand(parameters=parameters, machines=tuple(machines), server=WIDE)
    quorum = len(machines) if config["quorum"] == "all" else min(int(config["quorum"]), len(machines))
    plan = predict(demand, config["compression"], steps, quorum, config["download_compression"])
    if plan.utilisation[0] >= TARGET:
        return plan, None
    better, _ = recommend(demand, TARGET)
    return plan, better if better.utilisation[0] > plan.utilisation[0] + BETTER else None


def _cost(steps: int, up: float, down: float, line: Link, step_s: float | None, advice: Plan | None) -> Cost:
    seconds = up / line.bytes_per_s("up") + line.rtt_s + down / line.bytes_per_s("down")
    computes = None if step_s is None else steps * step_s
    return Cost(
        local_steps=steps,
        upload_bytes=round(up),
        download_bytes=round(down),
        seconds=seconds,
        step_s=step_s,
        hidden=None if computes is None else min(1.0, computes / seconds),
        utilisation=None if computes is None else computes / max(computes, seconds),
        hiding_step_s=seconds / steps,
        advice=advice,
    )


def _others(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The live workers whose rounds the server has seen."""
    return [row for row in state["workers"].values() if row["state"] == "ready" and row["round_s"]]


def line_of(rtt_s: float, up_bytes_per_s: float, down_bytes_per_s: float) -> Link:
    """A measured line as the planner describes lines."""
    return Link(
        up_mbps=up_bytes_per_s / MEGABIT,
        down_mbps=down_bytes_per_s / MEGABIT,
        latency_ms=1000 * rtt_s / 2,
        jitter_ms=0.0,
    )
