"""A mostly-zero vector as its non-zeros: what a top-k codec decodes to, and what aggregators read without densifying."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sparse:
    """The vector of length `size` with `values[i]` (float32) at `indices[i]` (int, strictly increasing), else zero."""

    indices: Tensor
    values: Tensor
    size: int
