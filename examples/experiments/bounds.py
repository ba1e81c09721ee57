"""Bounds of staleness for five unequal workers, in virtual time: fixed 5 and 50 against adaptive, with rounds of equal
length and with fitted ones. The real server and workers; a small transformer over the standard library's text.

    python -m examples.experiments.bounds --out bounds.jsonl

Told are what was accepted, the loss at equal tokens, and when the target loss was reached. `--out FILE` keeps the runs.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from pathlib import Path
from typing import Any

import torch

from examples.experiments.kept import Kept
from lightning_async.simulation import scenario_of, simulate

SPEEDS = {"2/1.5/1/.5/.3": [2.0, 1.5, 1.0, 0.5, 0.3], "10/5/1/.5/.1": [10.0, 5.0, 1.0, 0.5, 0.1]}
BOUNDS = ("fixed(bound=5)", "fixed(bound=50)", "adaptive")
ROUNDS: tuple[int | str, ...] = (16, "auto")
TARGET_LOSS = 2.5
LINK = {"up_mbps": 50, "down_mbps": 50, "latency_ms": 20, "jitter_ms": 5}


def run(speeds: str, bound: str, rounds: int | str, steps: int, seed: int) -> dict[str, Any]:
    """One run."""
    config = {"local_steps": rounds, "staleness": bound, "compression": "none", "total_steps": steps}
    workers = [{"speeds": SPEEDS[speeds], "link": LINK}]
    values = {"task": "text()", "step_s": 0.25, "workers": workers, "run": config, "seed": seed}
    result = simulate(scenario_of({**values, "target_loss": TARGET_LOSS}))
    return {
        "loss": result.final_loss,
        "reached_s": result.time_to_loss_s,
        "virtual_s": result.seconds,
        "acceptance": result.total.acceptance,
        "slowest": min(1.0 if w.acceptance is None else w.acceptance for w in result.workers),
        "staleness_p99": result.total.staleness_p99,
    }


def line(key: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Means over the seeds."""
    times = [row["reached_s"] for row in rows if row["reached_s"] is not None]
    when = f"{statistics.mean(times):.0f}" if len(times) == len(rows) else "not in all runs"
    losses, accepted = [row["loss"] for row in rows], statistics.mean(row["acceptance"] for row in rows)
    return (
        f"| {key['speeds']} | {key['rounds']} | {key['bound']} | {accepted:.1%} "
        f"| {min(row['slowest'] for row in rows):.0%} | {max(row['staleness_p99'] for row in rows)} "
        f"| {statistics.mean(losses):.3f} | {min(losses):.3f} to {max(losses):.3f} | {when} "
        f"| {statistics.mean(row['virtual_s'] for row in rows):.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="accepted local steps of all workers together")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file that keeps the runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    kept, lines = Kept(args.out), []
    for speeds in SPEEDS:
        for rounds in ROUNDS:
            for bound in BOUNDS:
                key = {"speeds": speeds, "bound": bound, "rounds": rounds, "steps": args.steps}
                rows = []
                for seed in range(args.seeds):
                    one = {**key, "seed": seed}
                    rows.append(kept.row(one, lambda one=one: run(**one)))
                lines.append(line(key, rows))
    print(
        "| speeds | steps of a round | bound | accepted | of the worst worker's | staleness p99 | loss | over seeds "
        f"| seconds to loss {TARGET_LOSS} | virtual s |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
