"""An aggregator: many updates -> one. A chain of mixes and one end, with its condition on n enforced, loudly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lightning_async.aggregation.base import Combine, Demand, Matrix, Mix, Outcome, Row, State
from lightning_async.aggregation.blocks import gram, length, norms
from lightning_async.aggregation.stream import Plan, combine, plan, reads
from lightning_async.errors import ConfigError

PREVIOUS = "previous"


@dataclass(frozen=True)
class Aggregator:
    """Updates of n workers -> one update. Two aggregators with the same `spec` are equal.

    `robust`: a minority of arbitrary rows cannot move the result far from the honest rows. `mixes` and `end` are the
    two halves that base.py explains; `end` None is the mean of the mixed rows.
    """

    spec: str
    robust: bool
    mixes: tuple[Mix, ...] = field(default=(), compare=False, repr=False)
    end: Combine | None = field(default=None, compare=False, repr=False)
    demand: Demand = field(default=Demand(), compare=False, repr=False)

    @property
    def smallest(self) -> int:
        """The smallest n for which every condition of the chain holds."""
        n = 1
        while self._unmet(n) is not None:
            n += 1
        return n

    def check(self, n: int) -> None:
        """Raises ConfigError, with the condition and the smallest n that would do, where n updates are too few."""
        unmet = self._unmet(n)
        if unmet is not None:
            who, seen, why = unmet
            inner = "" if seen == n else f" ({seen} rows after the preprocessing)"
            raise ConfigError(
                f"{self.spec} got {n} updates{inner}; {who} needs {why}, so at least {self.smallest} updates; "
                f"set the quorum to {self.smallest} or more, or lower f"
            )

    def init(self, d: int, secret: int = 0) -> State:
        """The state before the first step: seeds of members that shuffle, the previous aggregate of those that ask.

        `secret` (0 to 2^62): who knows it knows how members will shuffle.
        """
        state = {f"seed.{i}": torch.tensor(secret + i) for i, mix in enumerate(self.mixes) if mix.shuffles}
        return state | {PREVIOUS: torch.zeros(d)} if self._anchored() else state

    def plan(self, rows_gram: Matrix, weights: Sequence[float], state: State) -> Plan:
        """What to do with the rows, from their Gram matrix (summed over shards). Raises ConfigError as `check`."""
        self.check(len(weights))
        seeds = [int(state[f"seed.{i}"]) if mix.shuffles else 0 for i, mix in enumerate(self.mixes)]
        return plan(self.mixes, rows_gram, weights, seeds)

    def apply(self, rows: Sequence[Row], weights: Sequence[float], state: State) -> Outcome:
        """One step: rows (dense [d] or Sparse), one weight > 0 each, and the state -> aggregate, influence, new state.

        Reads its inputs only. Raises ConfigError where n is too small, or rows and weights do not fit each other.
        """
        self.check(len(rows))
        if len(weights) != len(rows) or not all(0.0 < weight < float("inf") for weight in weights):
            raise ConfigError(f"got {len(rows)} rows and weights {list(weights)}; give one weight > 0 per row")
        length(rows)
        seen: list[Row] = [*rows, state[PREVIOUS]] if self._anchored() else list(rows)
        made = self.plan(self._gram(seen), weights, state)
        vector, use = combine(seen, made, self.end)
        return Outcome(vector, _relative(use[: len(rows)]), self._next(state, vector))

    def __call__(self, updates: Tensor) -> Tensor:
        """The aggregate [d] of updates [n, d], each of weight 1, from the first state."""
        rows = [row.contiguous() for row in updates]
        return self.apply(rows, [1.0] * len(rows), self.init(updates.shape[1])).vector

    def _unmet(self, n: int) -> tuple[str, int, str] | None:
        """(member, rows it would see, condition) of the first member whose condition n updates do not meet."""
        for mix in self.mixes:
            if n < mix.demand.least:
                return mix.spec, n, mix.demand.why
            n = mix.rows(n)
        last = self.end.demand if self.end is not None else self.demand
        return (self.spec, n, last.why) if n < last.least else None

    def _anchored(self) -> bool:
        return any(mix.anchored for mix in self.mixes)

    def _gram(self, rows: Sequence[Row]) -> Matrix:
        wanted = reads(self.mixes)
        if wanted == "count":
            return np.zeros((len(rows), len(rows)))
        return gram(rows) if wanted == "gram" else norms(rows)

    def _next(self, state: State, vector: Tensor) -> State:
        fresh = {key: value + 1 for key, value in state.items() if key.startswith("seed.")}
        return fresh | {PREVIOUS: vector} if self._anchored() else fresh


def _relative(use: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[float]:
    most = float(np.abs(use).max(initial=0.0))
    return [float(abs(u)) / most if most > 0.0 else 0.0 for u in use]
