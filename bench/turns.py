"""Two ways to do a thing, measured in turn: a row has the median of each, and the median of the pairs' ratios."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

PAIRS = 7


def in_turn(first: Callable[[], float], second: Callable[[], float]) -> tuple[float, float, float]:
    """Medians of both, and the median ratio, of what they give."""
    taken = [(first(), second()) for _ in range(PAIRS)]
    return median(a for a, _ in taken), median(b for _, b in taken), median(a / b for a, b in taken)


def row(bench: str, unit: str, floor: float, rates: tuple[float, float, float], **more: Any) -> dict[str, Any]:
    """What bench/__main__.py prints, of (ours, reference, ratio)."""
    mine, reference, ratio = (float(f"{value:.4g}") for value in rates)
    return {"bench": bench, "ours": mine, "reference": reference, "floor": floor, "unit": unit, "ratio": ratio, **more}
