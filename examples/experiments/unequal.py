"""Unequal workers against one process at equal tokens, in virtual time: what round length, outer rate, weight and
`follow` are worth. The real server and workers; GPT-2 over the standard library's text.

    python -m examples.experiments.unequal --size pico --seeds 3

One JSON object a line, then a table: mean loss over the seeds, and what it is against one process of batch 24.
`--out FILE` keeps the lines, and what is in it already is not run again.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.experiments.kept import Kept
from examples.gpt2.corpus import cache_folder, prepare, standard_library
from examples.gpt2.data import Blocks
from examples.gpt2.module import SIZES, Size, network
from lightning_async.simulation import Result, Scenario, scenario_of, simulate
from lightning_async.simulation.tasks import batches

PICO = Size(layers=2, heads=4, width=64, block=64, tokens=2048, lr=1e-3)
SPEEDS = [2.0, 1.0, 0.3]
BATCH, WARMUP = 8, 20
HELD_OUT_BLOCKS = 256
ALONE = {"one process, batch 24": 24, "one process, batch 8": 8}
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"H={h}": {"local_steps": h} for h in (16, 8, 4)},
    **{f"H={h}, fetched at submissions only": {"local_steps": h, "follow": False} for h in (16, 8, 4)},
    **{f"H=16, sgd(lr={lr})": {"local_steps": 16, "outer": f"sgd(lr={lr})"} for lr in (0.7, 0.5)},
    "H=16, polynomial(a=0.5)": {"local_steps": 16, "weight": "polynomial(a=0.5)"},
    "H=16, polynomial(a=0.5), fetched at submissions only": {
        "local_steps": 16,
        "weight": "polynomial(a=0.5)",
        "follow": False,
    },
    "H=16, sgd(lr=0.5), fetched at submissions only": {"local_steps": 16, "outer": "sgd(lr=0.5)", "follow": False},
}


@dataclass(frozen=True)
class Tokens:
    """The demo's GPT-2 and its text, as a task of the simulator; `seed` of the first parameters."""

    size: Size
    seed: int = 0
    batch_size: int = BATCH
    held_out: int = HELD_OUT_BLOCKS

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return network(self.size)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        decayed = [p for p in model.parameters() if p.dim() >= 2]
        groups = [{"params": decayed}, {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.size.lr, betas=(0.9, 0.95), weight_decay=0.1)
        seen = 0

        def warm_up(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
            nonlocal seen
            seen += 1
            for group in optimizer.param_groups:
                group["lr"] = self.size.lr * min(1.0, seen / WARMUP)

        optimizer.register_step_pre_hook(warm_up)
        return optimizer

    def share(self, worker: int, workers: int) -> Blocks:
        return Blocks(self._corpus("train"), self.size.block)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        logits = model(input_ids=batch[:, :-1]).logits
        return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> float:
        held = Blocks(self._corpus("val"), self.size.block)
        spread = np.linspace(0, len(held) - 1, self.held_out, dtype=int)
        parts = [torch.stack([held[int(i)] for i in part]) for part in np.array_split(spread, 8)]
        return sum(float(self.loss(model, part)) for part in parts) / len(parts)

    def _corpus(self, part: str) -> Any:
        return prepare(standard_library(), cache_folder(), self.size.tokens, "*.py", 0.02).tokens(part)


def alone(task: Tokens, batch_size: int, steps: int, seed: int) -> float:
    """The loss of one process after `steps` steps of `batch_size`."""
    model = task.model()
    optimizer = task.optimizer(model)
    feed = batches(task.share(0, 1), batch_size, np.random.default_rng(seed))
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, next(feed)).backward()
        optimizer.step()
    return task.evaluate(model)


def scenario(run: dict[str, Any], steps: int, seed: int) -> Scenario:
    """Three workers beside the server; what they send is never in their way."""
    workers = {"speeds": SPEEDS, "link": {"up_mbps": 1000, "down_mbps": 1000, "latency_ms": 0.5}}
    run = {"total_steps": steps, "weight": "constant", "compression": "none", **run}
    return scenario_of({"run": run, "workers": [workers], "seed": seed, "evaluations": 1, "step_s": 0.25})


def found(name: str, size: Size, steps: int, seed: int) -> dict[str, Any]:
    """What one run of the variant `name` came to."""
    task = Tokens(size, seed)
    if name in ALONE:
        return {"loss": alone(task, ALONE[name], steps * BATCH // ALONE[name], seed)}
    return told(simulate(scenario(VARIANTS[name], steps, seed), task))


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every run, those that are kept from before included."""
    kept = Kept(args.out)
    size = PICO if args.size == "pico" else SIZES[args.size]
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.only or [*ALONE, *VARIANTS]:
            key = {"what": name, "seed": seed}
            yield kept.row(key, lambda name=name, seed=seed: found(name, size, args.steps, seed))


def told(result: Result) -> dict[str, Any]:
    total = result.total
    return {
        "loss": result.final_loss,
        "versions": result.versions,
        "staleness": round(total.staleness_mean, 2),
        "steps": [worker.steps for worker in result.workers],
    }


def table(runs: list[dict[str, Any]]) -> str:
    losses: dict[str, list[float]] = {}
    for row in runs:
        losses.setdefault(row["what"], []).append(row["loss"])
    reference = statistics.mean(losses.get("one process, batch 24", [float("nan")]))
    lines = ["| what | loss | over seeds | against one process, batch 24 |", "|---|---|---|---|"]
    for what, each in losses.items():
        mean = statistics.mean(each)
        lines.append(f"| {what} | {mean:.3f} | {min(each):.3f} to {max(each):.3f} | {mean / reference - 1:+.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("pico", "nano"), default="pico")
    parser.add_argument("--steps", type=int, default=990, help="local steps of all workers together")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[*ALONE, *VARIANTS], help="some of the variants")
    parser.add_argument("--out", type=Path, help="file that keeps the JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print(table(list(rows(args))))


if __name__ == "__main__":
    main()
