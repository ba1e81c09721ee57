"""Outer optimizers under the HALoS environment, in virtual time: four regions of four unequal workers, slow lines
between them (arXiv 2506.04531). The real server and workers; a transformer over the standard library's text.

    python -m examples.experiments.halos --out halos.jsonl
    python -m examples.experiments.halos --model tiny --steps 10240 --tuning 5120 --out halos.jsonl

Every method gets its learning rate from the same grid (nesterov's a tenth of it, adam's a hundredth) in runs of
`--tuning` steps, synchronous ones of `--tuning-sync` or else `--steps`, since they make few outer steps, and then
`--seeds` runs of `--steps` steps. Told are the loss at equal tokens, when the loss of synchronous DiLoCo was reached,
and the loss at the time when synchronous DiLoCo ended. `--out FILE` keeps the runs, and what is in it is not run again.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from examples.experiments.kept import Kept
from examples.experiments.unequal import Tokens
from examples.gpt2.module import SIZES
from lightning_async.config import read_config
from lightning_async.simulation import Scenario, read_scenario, simulate
from lightning_async.simulation.scenario import Group, Trunk
from lightning_async.simulation.tasks import Task
from lightning_async.simulation.text import text

RATES = (0.075, 0.15, 0.3, 0.6, 1.0, 1.5, 2.0)
MIDDLE = RATES.index(0.6)  # where the search begins
REFERENCE = "synchronous DiLoCo, H=32"
SYNC: dict[str, Any] = {"mode": "sync", "local_steps": 32}
FITTED: dict[str, Any] = {"local_steps": "auto", "staleness": "adaptive"}
EQUAL: dict[str, Any] = {"local_steps": 8, "staleness": "adaptive"}
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    REFERENCE: (SYNC, "nesterov(lr={lr}, momentum=0.9)"),
    "synchronous DiLoCo, H=16": ({**SYNC, "local_steps": 16}, "nesterov(lr={lr}, momentum=0.9)"),
    "synchronous DiLoCo, H=8": ({**SYNC, "local_steps": 8}, "nesterov(lr={lr}, momentum=0.9)"),
    "synchronous averaging, H=32": (SYNC, "sgd(lr={lr})"),
    "sgd": (FITTED, "sgd(lr={lr})"),
    "delayed_nesterov": (FITTED, "delayed_nesterov(lr={lr}, momentum=0.9)"),
    "heloco": (FITTED, "heloco(lr={lr})"),
    "nesterov": (FITTED, "nesterov(lr={tenth}, momentum=0.9)"),
    "look_ahead": (FITTED, "look_ahead(lr={lr})"),
    "delay_compensated": (FITTED, "delay_compensated(sgd(lr={lr}))"),
    "adam": (FITTED, "adam(lr={small})"),
    "age_gated_adam": (FITTED, "age_gated_adam(lr={small})"),
    "sgd, rounds of 8": (EQUAL, "sgd(lr={lr})"),
    "delayed_nesterov, rounds of 8": (EQUAL, "delayed_nesterov(lr={lr}, momentum=0.9)"),
    "sgd, topk": ({**FITTED, "compression": "topk"}, "sgd(lr={lr})"),
    "sgd, int8": ({**FITTED, "compression": "int8", "download_compression": "int8"}, "sgd(lr={lr})"),
}


@dataclass(frozen=True)
class Setting:
    """A model, how much wider the regions' lines are made for it, and how many workers of each region there are."""

    task: Callable[[], Task]
    lines: float = 1.0
    each: int = 4

    def scenario(self) -> Scenario:
        """The environment with those lines and workers."""
        shipped = read_scenario("halos")
        return replace(shipped, workers=tuple(self._group(group) for group in shipped.workers), target_loss=None)

    def _group(self, group: Group) -> Group:
        trunk = group.trunk
        if trunk is not None:
            trunk = Trunk(up_mbps=trunk.up_mbps * self.lines, down_mbps=trunk.down_mbps * self.lines)
        return replace(group, trunk=trunk, speeds=group.speeds[: self.each])


SETTINGS = {
    "text": Setting(text),  # 112,384 parameters: the scenario as it is shipped
    "tiny": Setting(lambda: text(layers=1, width=32, heads=2, block=32)),  # 17,888 of them, over the same lines
    "nano": Setting(
        lambda: Tokens(SIZES["nano"], batch_size=2, held_out=64), lines=2.4, each=1
    ),  # the demo's GPT-2, 1,071,872
}


def run(model: str, name: str, rate: float, steps: int, seed: int) -> dict[str, Any]:
    """One run of a method."""
    config, outer = METHODS[name]
    config = {"compression": "none", **config, "outer": outer.format(lr=rate, tenth=rate / 10, small=rate / 100)}
    config["total_steps"] = steps
    setting = SETTINGS[model]
    scenario = replace(setting.scenario(), run=read_config(config), seed=seed, evaluations=20)
    result = simulate(scenario, setting.task())
    total = result.total
    return {
        "loss": result.final_loss,
        "virtual_s": result.seconds,
        "versions": result.versions,
        "acceptance": total.acceptance,
        "staleness_p99": total.staleness_p99,
        "utilisation": total.utilisation,
        "sent_bytes": total.sent_bytes,
        "received_bytes": total.received_bytes,
        "curve": [(point.time_s, point.steps, point.loss) for point in result.curve],
    }


def tuned(loss: Callable[[float], float]) -> float:
    """The rate of the grid that ends lowest: from the middle of the grid down the slope as far as it goes."""
    best = MIDDLE
    for way in (-1, 1):
        while 0 <= best + way < len(RATES) and loss(RATES[best + way]) < loss(RATES[best]):
            best += way
        if best != MIDDLE:
            break
    return RATES[best]


def reached_s(curve: Sequence[Sequence[float]], loss: float) -> float | None:
    """When the loss was first no higher; None for never."""
    return next((time for time, _, found in curve if found <= loss), None)


def loss_at(curve: Sequence[Sequence[float]], time_s: float) -> float:
    """The last loss before that time."""
    return [found for time, _, found in curve if time <= time_s][-1]


def table(found: dict[str, tuple[float, list[dict[str, Any]]]]) -> str:
    """Means over the seeds."""
    _, reference = found[REFERENCE]
    lines = [
        "| method | rate | loss | over seeds | against DiLoCo | virtual s | DiLoCo's loss | loss when DiLoCo ends "
        "| accepted | staleness p99 | utilisation | MB up |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    base = statistics.mean(row["loss"] for row in reference)
    for name, (rate, rows) in found.items():
        losses = [row["loss"] for row in rows]
        times = [reached_s(row["curve"], old["loss"]) for row, old in zip(rows, reference, strict=True)]
        faster = [old["virtual_s"] / t for t, old in zip(times, reference, strict=True) if t]
        then = statistics.mean(loss_at(row["curve"], o["virtual_s"]) for row, o in zip(rows, reference, strict=True))
        mean = statistics.mean(losses)
        soon = f"{statistics.mean(faster):.1f}x sooner" if len(faster) == len(times) else "not in all runs"
        edge = " (end of the grid)" if rate in (RATES[0], RATES[-1]) else ""
        lines.append(
            f"| {name} | {rate}{edge} | {mean:.4f} | {min(losses):.4f} to {max(losses):.4f} | {mean / base - 1:+.2%} "
            f"| {statistics.mean(row['virtual_s'] for row in rows):.0f} | {soon} | {then:.4f} "
            f"| {statistics.mean(row['acceptance'] for row in rows):.1%} | {max(row['staleness_p99'] for row in rows)} "
            f"| {statistics.mean(row['utilisation'] for row in rows):.0%} "
            f"| {statistics.mean(row['sent_bytes'] for row in rows) / 1e6:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SETTINGS), default="text")
    parser.add_argument("--steps", type=int, default=5000, help="local steps of all workers together")
    parser.add_argument("--tuning", type=int, default=2000, help="the same, of the runs that choose the rate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tuning-sync", type=int, help="the same, of synchronous methods; else --steps")
    parser.add_argument("--tuned-on", choices=list(SETTINGS), help="the model with which the rates are found")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), help="some of the methods, beside DiLoCo")
    parser.add_argument("--out", type=Path, help="file that keeps the runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    kept, found = Kept(args.out), {}

    def row(model: str, name: str, rate: float, steps: int, seed: int) -> dict[str, Any]:
        key = {"model": model, "rate": rate, "steps": steps, "seed": seed}
        return kept.row({**key, "method": name}, lambda: run(name=name, **key))

    def best(name: str) -> float:
        steps = (args.tuning_sync or args.steps) if METHODS[name][0].get("mode") == "sync" else args.tuning
        return tuned(lambda rate: float(row(args.tuned_on or args.model, name, rate, steps, 0)["loss"]))

    for name in dict.fromkeys((REFERENCE, *(args.only or METHODS))):
        rate = best(name)
        found[name] = (rate, [row(args.model, name, rate, args.steps, seed) for seed in range(args.seeds)])
    print(table(found))


if __name__ == "__main__":
    main()
