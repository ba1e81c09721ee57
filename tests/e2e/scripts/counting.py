"""A model that counts: sample i adds one to weight i, so the weights of a run say how often each sample was applied.

Run it as `python counting.py '{"server": "tcp://...", "name": "a", "samples": 600, "batch": 4}'`. With `hold` it says
"holding" in its step of that number and waits there until the file `go` is there; a `go-<name>` lets it go on alone.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_async import AsyncWANStrategy

torch.set_num_threads(1)


class Places(Dataset[Tensor]):
    """Sample i is the number i."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(index)


class Counting(LightningModule):
    """The gradient of the loss at weight i is minus how often sample i is in the batch."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options = options
        self.weight = nn.Parameter(torch.zeros(options["samples"]))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == self.options.get("hold"):
            print("holding", flush=True)
            while not (Path("go").exists() or Path(f"go-{self.options['name']}").exists()):
                time.sleep(0.05)
        return -self.weight[batch].sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1])
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    strategy = AsyncWANStrategy(options["server"], name=options["name"])
    trainer = Trainer(accelerator="cpu", max_epochs=options.get("epochs", 1), strategy=strategy, **quiet)
    loader = DataLoader(
        Places(options["samples"]), options["batch"], shuffle=True, num_workers=options.get("processes", 0)
    )
    trainer.fit(Counting(options), loader)
    print(f"trained {trainer.global_step} steps in {trainer.current_epoch} epochs", flush=True)


if __name__ == "__main__":
    main()
