"""What may not change while a worker is in a run: the set of parameters that it trains, and what the server steps.

Callbacks that unfreeze layers, or add parameter groups, change both. Saying so beats training a part of the model that
nobody else knows of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lightning_async.errors import CallerError
from lightning_async.layout import Shared

MOST_DIVERGED = 3  # rounds in a row that were not finite before training is stopped


class Guard:
    """Remembers what `module` shared when it joined, by identity: the tensors are the user's, and stay."""

    def __init__(self, module: nn.Module, shared: Shared) -> None:
        self._module = module
        self._known = {id(p) for p in shared.parameters}
        self._optimizers: list[torch.optim.Optimizer] = []
        self._groups: list[list[list[int]]] = []

    def remember(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """In gradient mode: these are what the server steps."""
        self._optimizers = list(optimizers)
        self._groups = [_grouped(optimizer) for optimizer in optimizers]

    def check(self) -> None:
        """Raises CallerError when a parameter is trained that was not shared.

        One that has been frozen is no error: it gets no gradient, and `toggle_optimizer` freezes for a step.
        """
        if all(id(p) in self._known for p in self._module.parameters() if p.requires_grad):
            return
        new = next(n for n, p in self._module.named_parameters() if p.requires_grad and id(p) not in self._known)
        raise CallerError(
            f"{new!r} became trainable after this worker joined; a run shares a fixed set of parameters. Set "
            "requires_grad before training starts, and give what is to rest for a while lr=0 instead"
        )

    def check_finite(self, diverged: int) -> None:
        """Raises CallerError when that many rounds in a row, the last ones, were not finite."""
        if diverged >= MOST_DIVERGED:
            raise CallerError(
                f"{diverged} rounds in a row held NaN or infinity: this worker's training diverges. Lower the learning "
                "rate, clip gradients, or look at the data"
            )

    def check_groups(self, optimizer: int) -> None:
        """As `check`, and raises CallerError when the groups of that optimizer are not what the server steps."""
        self.check()
        now, then = _grouped(self._optimizers[optimizer]), self._groups[optimizer]
        if now == then:
            return
        changed = {p for group in now for p in group} ^ {p for group in then for p in group}
        name = next((repr(n) for n, p in self._module.named_parameters() if id(p) in changed), "a parameter")
        raise CallerError(
            f"{name} came to or left {type(self._optimizers[optimizer]).__name__} after this worker joined; with "
            'submit="gradient" the server steps the groups of the start. Give what is to rest for a while lr=0 '
            'instead, or use submit="update"'
        )


def _grouped(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [[id(p) for p in group["params"]] for group in optimizer.param_groups]
