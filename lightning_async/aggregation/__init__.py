"""Aggregators: many updates -> one update. `aggregator("krum(f=2)")`, or the factories themselves, `krum(f=2)`."""

from __future__ import annotations

from collections.abc import Callable

from lightning_async.aggregation.aggregator import Aggregator
from lightning_async.aggregation.base import Mix, Outcome, State
from lightning_async.aggregation.coordinate import meamed, mean, median, trimmed_mean
from lightning_async.errors import ConfigError
from lightning_async.spec import parse

AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
    "mean": mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "meamed": meamed,
}
PREPROCESSING: dict[str, Callable[..., Mix]] = {}

__all__ = [
    "AGGREGATORS",
    "PREPROCESSING",
    "Aggregator",
    "Mix",
    "Outcome",
    "State",
    "aggregator",
    "meamed",
    "mean",
    "median",
    "trimmed_mean",
]


def aggregator(choice: str | Aggregator) -> Aggregator:
    """The aggregator that `choice` is or names. Raises ConfigError for anything else."""
    known: dict[str, Callable[..., Aggregator | Mix]] = {**AGGREGATORS, **PREPROCESSING}
    made = parse(choice, known, "aggregator") if isinstance(choice, str) else choice
    if isinstance(made, Mix):
        raise ConfigError(f"{made.spec} prepares updates and does not join them; write pipeline({made.spec}, <rule>)")
    if not isinstance(made, Aggregator):
        raise ConfigError(f"got {made!r} for an aggregator; give a spec such as 'trimmed_mean(f=2)', or krum(f=2)")
    return made
