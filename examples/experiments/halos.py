"""Outer optimizers under the HALoS environment, in virtual time: four regions of four unequal workers, slow lines
between them (arXiv 2506.04531). The real server and workers; a small transformer over the standard library's text.

    python -m examples.experiments.halos --out halos.jsonl

Every method gets its learning rate from the same grid (adam's a hundredth of it) in runs of `--tuning` steps, and then
`--seeds` runs of `--steps` steps. Told are the loss at equal tokens, when the loss of synchronous DiLoCo was reached,
and the loss at the time when synchronous DiLoCo ended. `--out FILE` keeps the runs, and what is in it is not run again.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.experiments.kept import Kept
from lightning_async.config import read_config
from lightning_async.simulation import read_scenario, simulate

RATES = (0.15, 0.3, 0.6, 1.0)
REFERENCE = "synchronous DiLoCo, H=32"
SYNC: dict[str, Any] = {"mode": "sync", "local_steps": 32}
FITTED: dict[str, Any] = {"local_steps": "auto", "staleness": "adaptive"}
EQUAL: dict[str, Any] = {"local_steps": 8, "staleness": "adaptive"}
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    REFERENCE: (SYNC, "nesterov(lr={lr}, momentum=0.9)"),
    "synchronous DiLoCo, H=8": ({**SYNC, "local_steps": 8}, "nesterov(lr={lr}, momentum=0.9)"),
    "synchronous averaging, H=32": (SYNC, "sgd(lr={lr})"),
    "sgd": (FITTED, "sgd(lr={lr})"),
    "delayed_nesterov": (FITTED, "delayed_nesterov(lr={lr}, momentum=0.9)"),
    "heloco": (FITTED, "heloco(lr={lr})"),
    "nesterov": (FITTED, "nesterov(lr={lr}, momentum=0.9)"),
    "look_ahead": (FITTED, "look_ahead(lr={lr})"),
    "delay_compensated": (FITTED, "delay_compensated(sgd(lr={lr}))"),
    "adam": (FITTED, "adam(lr={small})"),
    "age_gated_adam": (FITTED, "age_gated_adam(lr={small})"),
    "sgd, rounds of 8": (EQUAL, "sgd(lr={lr})"),
    "delayed_nesterov, rounds of 8": (EQUAL, "delayed_nesterov(lr={lr}, momentum=0.9)"),
    "sgd, topk": ({**FITTED, "compression": "topk"}, "sgd(lr={lr})"),
    "sgd, int8": ({**FITTED, "compression": "int8", "download_compression": "int8"}, "sgd(lr={lr})"),
}


def run(name: str, rate: float, steps: int, seed: int) -> dict[str, Any]:
    """One run of a method."""
    config, outer = METHODS[name]
    config = {**config, "outer": outer.format(lr=rate, small=rate / 100), "total_steps": steps}
    scenario = replace(read_scenario("halos"), run=read_config(config), seed=seed, target_loss=None)
    result = simulate(scenario)
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


def tuned(kept: Kept, name: str, steps: int) -> float:
    """The rate of the grid that ends lowest; one at the grid's end is said to be there by the table."""

    def loss(rate: float) -> float:
        row = kept.row({"method": name, "rate": rate, "steps": steps, "seed": 0}, lambda: run(name, rate, steps, 0))
        return float(row["loss"])

    return min(RATES, key=loss)


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
    parser.add_argument("--steps", type=int, default=5000, help="local steps of all workers together")
    parser.add_argument("--tuning", type=int, default=2000, help="the same, of the runs that choose the rate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), help="some of the methods, beside DiLoCo")
    parser.add_argument("--out", type=Path, help="file that keeps the runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    kept, found = Kept(args.out), {}
    for name in dict.fromkeys((REFERENCE, *(args.only or METHODS))):
        rate = tuned(kept, name, args.tuning)
        rows = []
        for seed in range(args.seeds):
            key = {"method": name, "rate": rate, "steps": args.steps, "seed": seed}
            rows.append(kept.row(key, lambda name=name, rate=rate, seed=seed: run(name, rate, args.steps, seed)))
        found[name] = (rate, rows)
    print(table(found))


if __name__ == "__main__":
    main()
