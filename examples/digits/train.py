"""Digits in less than a minute: three local workers, one model. `python -m examples.digits.train` (--plain: one device)

The network has BatchNorm: its running statistics are floating buffers, which the workers share beside the parameters.
"""

from __future__ import annotations

import sys

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_async import AsyncWANStrategy


class Digits(LightningModule):
    """10 classes from images `[batch, 1, 8, 8]`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        hits = self.net(batch[0]).argmax(1) == batch[1]
        self.log("accuracy", hits.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main() -> None:
    seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    whole = TensorDataset(torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels))
    train, val = random_split(whole, [0.8, 0.2])
    shared = {"devices": 1} if "--plain" in sys.argv else {"devices": 3, "strategy": AsyncWANStrategy(local_steps=5)}
    trainer = Trainer(max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False, **shared)
    trainer.fit(Digits(), DataLoader(train, 32, shuffle=True), DataLoader(val, 100))
    if trainer.is_global_zero:
        print(f"validation accuracy {float(trainer.callback_metrics['accuracy']):.3f}")


if __name__ == "__main__":
    main()
