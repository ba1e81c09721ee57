"""`lightning-async simulate`: what would come of a run, in virtual time, without the machines."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_async.cli.table import aligned, size

if TYPE_CHECKING:
    from lightning_async.simulation import Numbers, Result

MOST_ROWS = 40
NAMES = "worker, speed, steps, utilisation, accepted, refused, acceptance, staleness, p99, up, down, lives"
COLUMNS = NAMES.split(", ")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", nargs="?", help="a YAML file, or the name of a shipped one; none: list those")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help="change the scenario: run.local_steps=8, workers.0.speed=2.0, workers.*.link.loss=0.01; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="in place of the scenario's")
    parser.add_argument("--json", action="store_true", help="everything, the curve included, as one JSON object")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write PNG files there; needs matplotlib")


def run(args: argparse.Namespace) -> int:
    from lightning_async.simulation import read_scenario, shipped, simulate

    if args.scenario is None:
        print("\n".join(f"{name:16s} {read_scenario(name).about}" for name in shipped()))
        return 0
    import torch

    torch.set_num_threads(1)
    changes = [*args.changes, *([] if args.seed is None else [f"seed={args.seed}"])]
    with _only_errors_logged():
        result = simulate(read_scenario(args.scenario, changes))
    print(json.dumps(result.as_dict()) if args.json else text(result))
    if args.plots is not None:
        from lightning_async.simulation.plots import plot

        for path in plot(result, args.plots):
            print(path)
    return 0


@contextlib.contextmanager
def _only_errors_logged() -> Iterator[None]:
    """Refusals are in the table."""
    log = logging.getLogger("lightning_async")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def text(result: Result) -> str:
    """The page that `simulate` prints."""
    rows = [_row(worker) for worker in result.workers[:MOST_ROWS]]
    hidden = len(result.workers) - len(rows)
    more = f"\nand {hidden} more" if hidden else ""
    failures = "".join(f"\n{worker.name} failed at {why}" for worker in result.workers for why in worker.failures)
    return f"{_head(result)}\n\n{aligned([COLUMNS, *rows, _row(result.total)])}{more}{failures}"


def _head(result: Result) -> str:
    parts = [
        f"{result.scenario}, seed {result.seed}: {result.seconds:,.0f} virtual seconds, {result.versions:,} versions, "
        f"{result.steps:,} steps accepted",
        "no loss: nobody has begun" if result.final_loss is None else f"final loss {result.final_loss:.4f}",
    ]
    if result.target_loss is not None:
        reached = result.time_to_loss_s
        when = "not reached" if reached is None else f"reached after {reached:,.0f} s"
        parts.append(f"loss {result.target_loss:g} {when}")
    return "\n".join(parts)


def _row(worker: Numbers) -> list[str]:
    refused = ", ".join(f"{reason} {count}" for reason, count in worker.refused.items())
    return [
        worker.name,
        f"{worker.speed:.3g}",
        f"{worker.steps:,}",
        f"{worker.utilisation:.1%}",
        f"{worker.accepted:,}",
        refused or "0",
        f"{worker.acceptance:.1%}",
        f"{worker.staleness_mean:.2f}",
        str(worker.staleness_p99),
        size(worker.sent_bytes),
        size(worker.received_bytes),
        str(worker.lives),
    ]
