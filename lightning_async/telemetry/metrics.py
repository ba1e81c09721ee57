"""Small running statistics, as values: `after` gives the next one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ewma:
    """Exponentially weighted mean; the first value counts whole. None before it."""

    value: float | None = None
    weight: float = 0.2

    def after(self, value: float) -> Ewma:
        old = self.value
        return Ewma(value if old is None else old + self.weight * (value - old), self.weight)


@dataclass
class Histogram:
    """Counts of whole numbers, such as staleness in versions."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, value: int) -> None:
        self.counts[value] += 1

    @property
    def mean(self) -> float | None:
        """None when empty."""
        total = sum(self.counts.values())
        return sum(value * count for value, count in self.counts.items()) / total if total else None

    def quantile(self, q: float) -> int:
        """The smallest value that at least the share `q` of the counts does not pass; 0 when empty."""
        need, seen = q * sum(self.counts.values()), 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= need:
                return value
        return 0

    def as_dict(self) -> dict[str, int]:
        return {str(value): self.counts[value] for value in sorted(self.counts)}
