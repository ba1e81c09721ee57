"""A sparse vector: which coordinates of `size` are kept, and their values; everything else is zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """`indices`: int64 or int32 [k], strictly increasing, in [0, size). `values`: float32 [k]. Neither is checked."""

    indices: Tensor
    values: Tensor
    size: int

    def dense(self) -> Tensor:
        """The same vector as a fresh float32 [size]."""
        return self.add_to(torch.zeros(self.size, dtype=torch.float32, device=self.values.device))

    def add_to(self, vector: Tensor, weight: float = 1.0) -> Tensor:
        """Adds `weight` times this vector to `vector` (float32 [size]) in place, and returns it."""
        return vector.index_add_(0, self.indices, self.values, alpha=weight)
