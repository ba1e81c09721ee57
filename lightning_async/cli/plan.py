"""`lightning-async plan`: which round length, codec and quorum suit a model, machines and lines."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lightning_async.cli.table import aligned, size

if TYPE_CHECKING:
    from lightning_async.simulation.planning import Demand, Plan

NAMES = "compression, local_steps, quorum, utilisation, staleness, an update, versions/h, server's line"
COLUMNS = NAMES.split(", ")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", nargs="?", help="a YAML file, or a shipped one: its machines and lines")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="change it, as for `simulate`"
    )
    parser.add_argument("--parameters", type=_count, help="of the model, such as 124e6; default: the scenario's task's")
    machines = parser.add_argument_group("without a scenario")
    machines.add_argument("--speeds", type=float, nargs="+", default=[1.0], help="of the machines; default: one of 1")
    machines.add_argument("--step-s", type=float, default=0.25, help="seconds of a step at speed 1; default: 0.25")
    for name in ("up-mbps", "down-mbps", "latency-ms"):
        machines.add_argument(f"--{name}", type=float, help="of every machine's line, one way")
    parser.add_argument("--target", type=float, default=0.95, help="utilisation to reach; default: 0.95")


def _count(text: str) -> int:
    return int(float(text))


def run(args: argparse.Namespace) -> int:
    from lightning_async.simulation.planning import recommend

    taken, plans = recommend(demand_of(args), args.target)
    print(text(taken, plans, args.target))
    return 0


def demand_of(args: argparse.Namespace) -> Demand:
    """What the arguments ask to be planned. Raises ConfigError."""
    from lightning_async.simulation import read_scenario, scenario_of
    from lightning_async.simulation.planning import demand_in

    if args.scenario is not None:
        return demand_in(read_scenario(args.scenario, args.changes), args.parameters)
    given = {name: getattr(args, name) for name in ("up_mbps", "down_mbps", "latency_ms")}
    link = {name: value for name, value in given.items() if value is not None}
    values: dict[str, Any] = {"workers": [{"speeds": args.speeds, "link": link}], "step_s": args.step_s, "seconds": 1.0}
    return demand_in(scenario_of(values), args.parameters)


def text(taken: Plan, plans: tuple[Plan, ...], target: float) -> str:
    """The page that `plan` prints."""
    told = aligned([COLUMNS, *map(_row, plans)])
    short = "" if taken.least >= target else f"\nnothing reaches {target:.0%}: the lines are too thin for this model"
    return (
        f"{told}{short}\n\n"
        f"AsyncWANStrategy(compression={taken.compression!r}, local_steps={taken.local_steps}, quorum={taken.quorum})\n"
        f"# each worker computes {taken.least:.0%} of the time at least, updates are up to "
        f"{max(taken.staleness):.0f} versions old"
    )


def _row(plan: Plan) -> list[str]:
    return [
        plan.compression,
        str(plan.local_steps),
        str(plan.quorum),
        f"{plan.least:.0%}",
        f"{max(plan.staleness):.0f}",
        size(plan.upload_bytes),
        f"{plan.versions_per_hour:,.0f}",
        f"{plan.server_load:.1%}",
    ]
