"""One worker through the embedded server against plain Lightning: steps per second, and memory.

Steps per second: the two are trained in turn, in this process, and the ratio is the median over the pairs; the clock
runs over whole rounds, from the end of one to the end of another, so start and end of a fit are not in it. Memory: the
peak of resident memory of two fresh processes, whose difference is counted in flat copies of the model; what is left of
it with a model of next to nothing, the libraries that a worker loads, is printed beside it and not counted as copies.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from examples.gpt2.data import TextData
from examples.gpt2.module import GPT2, SIZES

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
LARGE, SMALL = 4096, 64  # widths of the layers in the memory measurement


class Mlp(LightningModule):
    """Two layers and a square loss: 2,177 parameters at width 64, on batches of 32 features."""

    def __init__(self, width: int = 64, features: int = 32, depth: int = 1) -> None:
        super().__init__()
        middle = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
        self.net = nn.Sequential(nn.Linear(features, width), nn.ReLU(), *middle, nn.Linear(width, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Stopwatch(Callback):
    """Seconds between the end of batch `start` and the end of batch `stop`."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.start:
            self.seconds -= time.perf_counter()
        if trainer.global_step == self.stop:
            self.seconds += time.perf_counter()


def strategy(local_steps: int) -> Any:
    from lightning_async import AsyncWANStrategy

    return AsyncWANStrategy(local_steps=local_steps)


def steps_per_second(model: LightningModule, batches: DataLoader[Any], rounds: int, h: int, shared: bool) -> float:
    """Of one fit, over `rounds` rounds of `h` steps, after one round that is not counted."""
    watch = Stopwatch(h, h * (rounds + 1))
    arguments = {"strategy": strategy(h)} if shared else {}
    trainer = Trainer(max_steps=h * (rounds + 1), max_epochs=-1, callbacks=[watch], **QUIET, **arguments)
    trainer.fit(model, batches)
    return h * rounds / watch.seconds


def compare(
    name: str,
    make: Callable[[], tuple[LightningModule, DataLoader[Any]]],
    h: int,
    rounds: int,
    pairs: int,
    floor: float,
) -> dict[str, Any]:
    """One row: ours and plain in turn, `pairs` times; the order changes from pair to pair."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for pair in range(pairs):
        for shared in (True, False) if pair % 2 else (False, True):
            found[shared].append(steps_per_second(*make(), rounds, h, shared))
    ratios = [ours / plain for ours, plain in zip(found[True], found[False], strict=True)]
    return {
        "bench": name,
        "ours": median(found[True]),
        "reference": median(found[False]),
        "floor": floor,
        "unit": "steps/s",
        "ratio": median(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "local_steps": h,
    }


def gpt2() -> tuple[LightningModule, DataLoader[Any]]:
    size = SIZES["nano"]
    data = TextData(size.tokens, size.block, batch_size=8)
    data.setup()
    return GPT2("nano"), data.train_dataloader()


def mlp() -> tuple[LightningModule, DataLoader[Any]]:
    return Mlp(), DataLoader(TensorDataset(torch.randn(4096, 32)), 16)


def peak_bytes(shared: bool, width: int, steps: int) -> tuple[int, int]:
    """Peak resident memory of this process after `steps` steps of a model of three such layers, and its bytes."""
    model = Mlp(width, width, depth=3)
    arguments = {"strategy": strategy(4)} if shared else {}
    trainer = Trainer(max_steps=steps, **QUIET, **arguments)
    trainer.fit(model, DataLoader(TensorDataset(torch.randn(2 * steps, width)), 1))
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024, 4 * sum(p.numel() for p in model.parameters())


def measured(mode: str, width: int) -> tuple[int, int]:
    """`peak_bytes` of a fresh process."""
    command = [sys.executable, "-m", "bench.training", mode, str(width)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak, flat = json.loads(out.splitlines()[-1])
    return peak, flat


def memory() -> dict[str, Any]:
    """Extra flat copies of the model in a worker; here less is better."""
    (ours, flat), (plain, _) = measured("shared", LARGE), measured("plain", LARGE)
    fixed = measured("shared", SMALL)[0] - measured("plain", SMALL)[0]
    return {
        "bench": "one worker, peak resident memory, extra flat copies of the model",
        "ours": ours / flat,
        "reference": plain / flat,
        "floor": 3.0,
        "unit": "flat copies",
        "ratio": (ours - plain - fixed) / flat,
        "lower": True,
        "flat_bytes": flat,
        "fixed_bytes": fixed,
        "ratio_with_fixed": (ours - plain) / flat,
    }


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    yield compare("one worker, nano GPT-2", gpt2, h=16, rounds=3, pairs=5, floor=0.97)
    yield compare("one worker, MLP of 2,177 parameters", mlp, h=10, rounds=60, pairs=9, floor=0.95)
    yield memory()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(peak_bytes(sys.argv[1] == "shared", int(sys.argv[2]), steps=17)))
