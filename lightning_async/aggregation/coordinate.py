"""Rules that look at one coordinate at a time: mean, and (robust) median, trimmed mean, mean around the median."""

from __future__ import annotations

from lightning_async.aggregation.aggregator import Aggregator
from lightning_async.spec import call


def mean() -> Aggregator:
    """sum_i w_i x_i / sum_i w_i. Not robust: one row of n moves it anywhere. One single row is returned itself."""
    return Aggregator(call("mean"), robust=False)
