"""What lengths of updates are usual in a run: the last norms of each worker, and the median of the workers' medians.

A worker that submits more often than others has no more say in it. The medians are kept in order, so that an update
costs the same with a thousand workers as with ten.
"""

from __future__ import annotations

import bisect
import statistics
from collections import deque
from collections.abc import Mapping, Sequence

NORMS_KEPT = 8  # of each worker
NORMS_NEEDED = 8  # of all workers together, before anything is usual


class Norms:
    """The norms of one group's updates."""

    def __init__(self) -> None:
        self._recent: dict[str, deque[float]] = {}
        self._ordered: list[float] = []  # each worker's median
        self._count = 0

    @property
    def usual(self) -> float | None:
        """The median of the workers' medians; None before there are enough norms."""
        if self._count < NORMS_NEEDED:
            return None
        half, odd = divmod(len(self._ordered), 2)
        return self._ordered[half] if odd else (self._ordered[half - 1] + self._ordered[half]) / 2

    def smallest(self, worker: str) -> float:
        """The smallest of the worker's last norms; 0 for one without any."""
        return min(self._recent.get(worker, ()), default=0.0)

    def note(self, worker: str, norm: float) -> None:
        """Remember a norm of this worker."""
        own = self._recent.get(worker)
        if own is None:
            own = self._recent[worker] = deque(maxlen=NORMS_KEPT)
        else:
            del self._ordered[bisect.bisect_left(self._ordered, statistics.median(own))]
        self._count += len(own) < NORMS_KEPT
        own.append(norm)
        bisect.insort(self._ordered, statistics.median(own))

    def dump(self) -> dict[str, list[float]]:
        """Plain values, for a snapshot."""
        return {worker: list(norms) for worker, norms in self._recent.items()}

    @classmethod
    def restored(cls, values: Mapping[str, Sequence[float]]) -> Norms:
        """The norms that `dump` gave."""
        norms = cls()
        for worker, own in values.items():
            for norm in own:
                norms.note(worker, norm)
        return norms
