"""Short sums of a long vector that keep distances: |sketch(x) - sketch(y)| is about |x - y|, within a few percent.

A count sketch (Charikar et al. 2002) whose hash moves whole blocks: coordinate i of block b goes to (i + shift_b) mod
`WIDTH` with the sign s_i t_b. The signs and shifts come from a secret, so that nobody can build a difference that
vanishes here. What a filter must remember of n workers' updates and of the models they were taken at are a few such
sketches, whatever the model's size.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WIDTH = 1 << 12
Plan = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


def sketch(vector: Tensor, secret: int) -> Tensor:
    """float64 [WIDTH] of a float32 vector of any length; linear in the vector."""
    values = vector.detach().numpy()
    signs, shifts, turns = _plan(secret, max(1, math.ceil(len(values) / WIDTH)))
    total = np.zeros(WIDTH)
    for block, (shift, turn) in enumerate(zip(shifts.tolist(), turns.tolist(), strict=True)):
        part = values[block * WIDTH : (block + 1) * WIDTH] * (turn * signs)[: len(values) - block * WIDTH]
        split = WIDTH - shift
        total[shift : shift + len(part[:split])] += part[:split]
        total[: len(part[split:])] += part[split:]
    return torch.from_numpy(total)


@lru_cache(maxsize=4)
def _plan(secret: int, blocks: int) -> Plan:
    rng = np.random.default_rng(secret)
    signs = rng.choice([-1.0, 1.0], WIDTH)
    return signs, rng.integers(0, WIDTH, blocks), rng.choice([-1.0, 1.0], blocks)
