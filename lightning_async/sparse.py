"""A sparse vector: which coordinates of `size` are kept, and their values; everything else is zero."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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
        vector = _zeros(self.size) if self.values.device.type == "cpu" else self.values.new_zeros(self.size)
        vector[self.indices] = self.values
        return vector

    def add_to(self, vector: Tensor, weight: float = 1.0) -> Tensor:
        """Adds `weight` times this vector to `vector` (float32 [size]) in place, and returns it."""
        return vector.index_add_(0, self.indices, self.values, alpha=weight)

    def lean(self) -> Tensor | Sparse:
        """Itself, or the dense vector where that takes less memory: an index of int64 is as large as two values."""
        return self.dense() if 3 * self.indices.numel() > self.size else self

    def mixed(self, other: Sparse, share: float) -> Sparse:
        """(1 - share) x this + share x other, sparse again."""
        both = torch.cat([self.indices, other.indices]).numpy()
        values = torch.cat([self.values * (1.0 - share), other.values * share])
        indices, place = np.unique(both, return_inverse=True)
        summed = torch.zeros(len(indices), dtype=torch.float32).index_add_(0, torch.from_numpy(place), values)
        return Sparse(torch.from_numpy(indices), summed, self.size)


def _zeros(size: int) -> Tensor:
    """Zeros from numpy: pages that nobody writes are never touched, which torch.zeros does to all of them."""
    return torch.from_numpy(np.zeros(size, dtype=np.float32))
