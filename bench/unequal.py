"""Three workers of speed 2.0, 1.0 and 0.3: tokens per second and loss, against what waits for the slowest.

The reference of speed is synchronous training of the three at the slowest worker's pace: a plain run throttled to speed
0.3, whose every step counts three batches. The reference of loss is plain training in one process with three times the
batch and the same number of tokens. All in one run, on the same data, with the same unit of time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from examples.gpt2.data import TextData
from examples.gpt2.module import GPT2, SIZES
from examples.gpt2.record import read
from examples.gpt2.throttle import unit_for

SPEEDS = (2.0, 1.0, 0.3)
BATCH = 8
STEPS = 1980  # of all workers together
PACE_STEPS = 20  # steps over which the synchronous pace is measured


def train(folder: Path, *options: object) -> dict[str, Any]:
    """One training in processes of its own; its outcome."""
    command = [sys.executable, "-m", "examples.gpt2.train", "--val-every", 100_000, "--out", folder, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("LOCAL_RANK", None)
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return outcome


def pace(folder: Path, name: str = "worker-0") -> float:
    """Tokens per second of one worker, from its first to its last recorded point."""
    points = read(folder / "curves")[name]
    return (points[-1].tokens - points[0].tokens) / (points[-1].time_s - points[0].time_s)


def rows(total: int = STEPS, shared: tuple[str, ...] = ()) -> Iterator[Mapping[str, Any]]:
    """`shared` are further options of the three workers' run, e.g. ("--outer", "sgd(lr=0.7)")."""
    torch.set_num_threads(1)
    size = SIZES["nano"]
    data = TextData(size.tokens, size.block, BATCH)
    data.setup()
    assert data.train is not None
    unit = unit_for(GPT2("nano"), torch.stack([data.train[i] for i in range(BATCH)]), SPEEDS)
    speeds = ("--speeds", *SPEEDS, "--unit", unit, "--batch-size", BATCH)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        ours = train(folder / "ours", *speeds, "--total-steps", total, *shared)
        slow = ("--speeds", min(SPEEDS), "--unit", unit, "--batch-size", BATCH, "--total-steps", PACE_STEPS)
        train(folder / "slow", "--plain", *slow)
        whole = ("--batch-size", BATCH * len(SPEEDS), "--total-steps", total // len(SPEEDS))
        single = train(folder / "single", "--plain", *whole)
        fast = sum(pace(folder / "ours", f"worker-{rank}") for rank in range(len(SPEEDS)))
        synchronous = len(SPEEDS) * pace(folder / "slow")
    facts = {"speeds": SPEEDS, "unit_s": round(unit, 3), "steps": ours["report"]["steps"], "options": shared}
    yield {
        "bench": "three unequal workers, tokens per second against synchronous at the slowest's pace",
        "ours": fast,
        "reference": synchronous,
        "floor": 2.8,
        "unit": "tokens/s",
        "ratio": fast / synchronous,
        **facts,
    }
    yield {
        "bench": "three unequal workers, validation loss at equal tokens against one process with the same total batch",
        "ours": ours["after"],
        "reference": single["after"],
        "floor": 1.02,
        "unit": "nats per token",
        "ratio": ours["after"] / single["after"],
        "lower": True,
        "staleness": ours["report"]["staleness"],
        **facts,
    }
