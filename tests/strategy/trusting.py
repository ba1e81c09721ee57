"""A validation function that an embedded server imports: the update of a round on data of the owner's own."""

from __future__ import annotations

import torch
from models import Net, loader


def update(tensors):
    """The gradient of the loss on all data: what a worker's step would be, for a learning rate of 1."""
    module = Net()
    module.load_state_dict(dict(tensors))
    torch.stack([module.loss(batch) for batch in loader()]).mean().backward()
    return {name: p.grad * 0.1 for name, p in module.named_parameters()}


def opposite(tensors):
    """What no honest worker would send."""
    return {name: -value for name, value in update(tensors).items()}
