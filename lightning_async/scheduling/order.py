"""Which sample stands at a position of a pass: the same on every worker, so that a lease is three small integers."""

from __future__ import annotations

import torch
from torch import Tensor


def permutation(length: int, seed: int, number: int, shuffle: bool = True) -> Tensor:
    """The order of pass `number`: int64 [length], the same on every worker and every machine."""
    if not shuffle:
        return torch.arange(length, dtype=torch.int64)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
    return torch.randperm(length, generator=generator, dtype=torch.int64)
