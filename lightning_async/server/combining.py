"""Slots -> the one update that the outer optimizer steps along, shrunk by how old they are. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_async.aggregation import Outcome, Row
from lightning_async.outer import Update
from lightning_async.server.buffer import Slot
from lightning_async.server.reputation import Review, review
from lightning_async.server.rules import Rules
from lightning_async.sparse import Sparse


def alone(rules: Rules, row: Row, age: int, factor: float) -> Update:
    """One update of this age, `factor` times its length."""
    vector = row.dense() if isinstance(row, Sparse) else row
    return Update(vector, factor * rules.weight.of(age), ((age, 1.0),))


def combined(
    rules: Rules, slots: Sequence[Slot], rows: Sequence[Row], ages: Sequence[int], state: dict[str, Tensor] | None
) -> tuple[Outcome, Update, Review]:
    """What the rule makes of `rows`, which are `ages` versions old; its aggregate, with the factor by which staleness
    shrinks the step (the mean of the weights of what was used) and the ages of what was used; and how the rows lie to a
    robust aggregate.

    `state`: of the rule, None before its first aggregate.
    """
    rule = rules.aggregator
    aged = [rules.weight.of(age) for age in ages]
    shares = [1.0] * len(slots) if rule.robust else [float(slot.samples) for slot in slots]
    outcome = rule.apply(
        rows,
        [share * age for share, age in zip(shares, aged, strict=True)],
        rule.init(_length(rows[0]), rules.private.secret) if state is None else state,
    )
    used = [share * use for share, use in zip(shares, outcome.influence, strict=True)] if rule.robust else shares
    seen = review(rows, outcome.vector, outcome.influence) if rule.robust else Review()
    mass = [use * age for use, age in zip(used, aged, strict=True)]
    parts = tuple((age, part / sum(mass)) for age, part in zip(ages, mass, strict=True)) if sum(mass) else ()
    return outcome, Update(outcome.vector, _mean(aged, used), parts), seen


def _length(row: Row) -> int:
    return row.size if isinstance(row, Sparse) else row.numel()


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    total = sum(weights)
    if all(value == 1.0 for value in values) or not total:
        return 1.0
    return sum(v * w for v, w in zip(values, weights, strict=True)) / total
