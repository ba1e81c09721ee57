"""Small modules to train, data whose length divides by the batch, and a Trainer that prints and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset, TensorDataset

SAMPLES, BATCH, WIDTH = 48, 8, 6
STEPS = SAMPLES // BATCH  # in an epoch


class Net(LightningModule):
    """Regression from `[batch, 6]` to `[batch, 1]`. `configure(module)` gives the optimizers."""

    def __init__(self, configure: Callable[[LightningModule], Any] | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 1))
        self.configure = configure or sgd

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        dtype = next(self.parameters()).dtype
        return mse_loss(self.net(x.to(dtype)), y.to(dtype))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=False)
        return loss

    def configure_optimizers(self) -> Any:
        return self.configure(self)


class Checked(Net):
    """A Net that is also validated and tested; it keeps the parameters it was validated with."""

    def __init__(self, configure: Callable[[LightningModule], Any] | None = None) -> None:
        super().__init__(configure)
        self.validated: list[dict[str, Tensor]] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not batch_idx:
            self.validated.append(state(self))
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0])


def sgd(module: nn.Module, lr: float = 0.1, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=lr, **options)


class Numbered(Dataset[Any]):
    """`(x, y, index)`, and remembers nothing."""

    def __init__(self, length: int = SAMPLES) -> None:
        self.data = data(length)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return (*self.data[index], index)


def data(length: int = SAMPLES) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(length, WIDTH, generator=generator, dtype=torch.float32)
    return TensorDataset(x, (x[:, :1] * 2 - x[:, 1:2] + 0.1).tanh())


def loader(length: int = SAMPLES, shuffle: bool = False, batch: int = BATCH) -> DataLoader[Any]:
    return DataLoader(data(length), batch, shuffle=shuffle)


def trainer(strategy: Any = "auto", **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False}
    quiet |= dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False)
    chosen = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "num_sanity_val_steps": 0, **quiet, **options}
    return Trainer(strategy=strategy, **chosen)


def fit(
    module: Callable[[], LightningModule], strategy: Any = "auto", **options: Any
) -> tuple[LightningModule, Trainer]:
    """Train a new `module` on the unshuffled data, always from the same seed."""
    torch.manual_seed(3)
    model, ours = module(), trainer(strategy, **options)
    ours.fit(model, loader())
    return model, ours


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def furthest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The largest difference between two state dicts."""
    assert left.keys() == right.keys()
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)
