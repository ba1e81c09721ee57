"""The two halves of every rule: a `Mix` (Gram matrix -> row weights) and a `Combine` (coordinate-wise end).

The n updates of a step are rows x_1 .. x_n of length d. All that clipping, neighbour mixing, bucketing and every
distance-based rule need to know of them is the Gram matrix G[i, j] = <x_i, x_j>, n x n, because

    |x_i - x_j|^2 = G[i, i] + G[j, j] - 2 G[i, j]        and        Gram(W X) = W G W^T.

So a Mix is a function G -> W of shape [m, n], chains by multiplication, and never touches the long rows. What is left
is a Combine: a block of m values per coordinate -> one value (median, trimmed mean ...), or no Combine, which is the
mean of the mixed rows and therefore one more multiplication by a small matrix.

Rule of this folder: the long rows are read twice at most (once for G, once for the result), block by block. They are
never stacked to [n, d], never written, and neither half draws random numbers: a seed is a part of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_async.arguments import is_whole
from lightning_async.errors import ConfigError
from lightning_async.sparse import Sparse

Row: TypeAlias = Tensor | Sparse
State: TypeAlias = dict[str, Tensor]
Matrix: TypeAlias = NDArray[np.float64]
Block: TypeAlias = Sequence[NDArray[np.float32]]
Weigh: TypeAlias = Callable[[Matrix, int], Matrix]
Reads: TypeAlias = Literal["count", "norms", "gram"]


@dataclass(frozen=True)
class Outcome:
    """What a step gave. `vector` may be one of the rows itself: read it, never write it.

    `influence[i]` says how much row i was used, relative to the row that was used most: 0 (left out) .. 1.
    """

    vector: Tensor
    influence: list[float]
    state: State


@dataclass(frozen=True)
class Demand:
    """How many rows a member needs: at least `least`, because of the condition `why` ("n >= 2f + 3")."""

    least: int = 1
    why: str = "n >= 1"


@dataclass(frozen=True)
class Mix:
    """Rows -> mixed rows. `weigh(G [k, k], seed)` gives W [m, k] with m = `rows(k)`; mixed row j is sum_i W[j, i] x_i.

    `reads` says what of G it looks at, so that a norm clip does not pay for n^2 products. A member that `shuffles` is
    given another seed each step, others 0. An `anchored` member finds the previous aggregate as the last row of G.
    One that `trusts` goes by a row's number, which says whose row it is only to a direct caller: no server runs it.
    """

    spec: str
    weigh: Weigh = field(compare=False, repr=False)
    demand: Demand = field(default=Demand(), compare=False)
    rows: Callable[[int], int] = field(default=lambda k: k, compare=False, repr=False)
    reads: Reads = field(default="gram", compare=False)
    shuffles: bool = field(default=False, compare=False)
    anchored: bool = field(default=False, compare=False)
    trusts: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Combine:
    """The coordinate-wise end: m rows of a block, each [b], and one positive weight per row (None: all equal) -> [b].

    The weights act on the values that the rule kept, never on which it keeps. `kept(block [m, b])` is True where a
    value enters the result; it is asked about a sample of coordinates, for the influence.
    """

    spec: str
    reduce: Callable[[Block, NDArray[np.float64] | None, NDArray[np.float32]], None] = field(compare=False, repr=False)
    kept: Callable[[NDArray[np.float32]], NDArray[np.bool_]] = field(compare=False, repr=False)
    demand: Demand = field(default=Demand(), compare=False)


def tolerated(name: str, f: int) -> int:
    """f, where it is a number of attackers (an integer >= 0). Raises ConfigError for anything else."""
    if not is_whole(f, 0):
        raise ConfigError(f"{name} got f={f!r}; f counts attackers: an integer >= 0, not a share of the workers")
    return f
