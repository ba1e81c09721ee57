"""Aggregators: many updates -> one update. `aggregator("krum(f=2)")`, or the factories themselves, `krum(f=2)`."""

from __future__ import annotations

from collections.abc import Callable

from lightning_async.aggregation.aggregator import Aggregator
from lightning_async.aggregation.base import Mix, Outcome, Row, State
from lightning_async.aggregation.centres import centered_clipping, geometric_median
from lightning_async.aggregation.coordinate import meamed, mean, median, trimmed_mean
from lightning_async.aggregation.filters import Filter, kardam, zeno
from lightning_async.aggregation.preprocess import arc, bucketing, clip_norm, clip_to_median_norm, nnm, pipeline
from lightning_async.aggregation.selection import bulyan, krum, mda, monna, multi_krum
from lightning_async.errors import ConfigError
from lightning_async.spec import parse

AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
    "mean": mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "meamed": meamed,
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
    "mda": mda,
    "monna": monna,
    "geometric_median": geometric_median,
    "centered_clipping": centered_clipping,
    "pipeline": pipeline,
}
PREPROCESSING: dict[str, Callable[..., Mix]] = {
    "clip_norm": clip_norm,
    "clip_to_median_norm": clip_to_median_norm,
    "arc": arc,
    "nnm": nnm,
    "bucketing": bucketing,
}
FILTERS: dict[str, Callable[..., Filter]] = {"zeno": zeno, "kardam": kardam}
__all__ = [
    "AGGREGATORS",
    "FILTERS",
    "PREPROCESSING",
    "Aggregator",
    "Filter",
    "Mix",
    "Outcome",
    "Row",
    "State",
    "aggregator",
    "arc",
    "bucketing",
    "bulyan",
    "centered_clipping",
    "clip_norm",
    "clip_to_median_norm",
    "geometric_median",
    "kardam",
    "krum",
    "mda",
    "meamed",
    "mean",
    "median",
    "monna",
    "multi_krum",
    "nnm",
    "pipeline",
    "rule",
    "trimmed_mean",
    "zeno",
]


def rule(choice: str | Aggregator | Filter) -> Aggregator | Filter:
    """The aggregator or filter that `choice` is or names. Raises ConfigError for anything else."""
    known: dict[str, Callable[..., Aggregator | Filter | Mix]] = {**AGGREGATORS, **FILTERS, **PREPROCESSING}
    made = parse(choice, known, "aggregator") if isinstance(choice, str) else choice
    if isinstance(made, Mix):
        raise ConfigError(f"{made.spec} prepares updates and does not join them; write pipeline({made.spec}, <rule>)")
    if not isinstance(made, (Aggregator, Filter)):
        raise ConfigError(f"got {made!r} for an aggregator; give a spec such as 'trimmed_mean(f=2)', or krum(f=2)")
    return made


def aggregator(choice: str | Aggregator) -> Aggregator:
    """The aggregator that `choice` is or names. Raises ConfigError for anything else."""
    made = rule(choice)
    if isinstance(made, Filter):
        raise ConfigError(f"{made.spec} judges updates one by one and does not join them; it needs a server's run")
    return made
