"""The attack on the data: an honest program trained on flipped labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset

from lightning_async.arguments import whole
from lightning_async.attacks.base import Attack
from lightning_async.spec import call


def label_flip(classes: int) -> Attack:
    """Trains honestly on data whose label y became classes - 1 - y; what it then sends is what it computed."""
    whole("label_flip classes", classes, 2)
    spec = call("label_flip", classes=classes)
    return Attack(spec, lambda own, _, state: (own, state), lambda dataset: FlippedLabels(dataset, classes))


class FlippedLabels(Dataset[tuple[Any, Any]]):
    """A dataset of (input, integer label) with every label y turned into classes - 1 - y."""

    def __init__(self, inner: Any, classes: int) -> None:
        self.inner = inner
        self.classes = classes

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        features, label = self.inner[index]
        return features, self.classes - 1 - label

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return (self[i] for i in range(len(self)))
