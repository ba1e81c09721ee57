"""A validation function, as an owner's module would have it."""

from __future__ import annotations

import torch

NOT_A_FUNCTION = 3


def ones(tensors):
    """A trusted update of 0.1 everywhere."""
    return {name: torch.full_like(tensor, 0.1) for name, tensor in tensors.items()}
