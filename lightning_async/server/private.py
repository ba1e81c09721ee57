"""What stays with the server and its owner: nothing of it is ever sent to a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

Validation: TypeAlias = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Private:
    """`secret` (0 to 2^62) seeds what attackers must not foresee: how bucketing shuffles, how kardam sketches.

    `validation(tensors)` gets copies of the parameters and buffers by name. It gives, for each parameter by name, what
    an honest worker would send for these: in gradient mode the gradient, in update mode the parameters minus what a
    round of local steps makes of them. `token` is what an owner's request over the wire must carry; empty: none is
    taken.
    """

    secret: int = field(default=0, repr=False)
    validation: Validation | None = None
    token: str = field(default="", repr=False)


NOTHING = Private()
