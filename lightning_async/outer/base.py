"""What an outer optimizer is: a pair of functions over flat float32 vectors, its state passed in and out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Outer:
    """An outer optimizer.

    `init(d)` gives the state for d parameters. `step(parameters, update, scale, state)` moves `parameters` [d] in place
    by one step along `scale * update` [d] (a pseudo-gradient: it is subtracted), updates `state` in place and returns
    it. `update` is never written: it may be a view of the received bytes.
    """

    spec: str
    init: Callable[[int], State] = field(compare=False, repr=False)
    step: Callable[[Tensor, Tensor, float, State], State] = field(compare=False, repr=False)
