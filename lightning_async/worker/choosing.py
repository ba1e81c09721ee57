"""Which rung of the upload codec's ladder the link has room for: a pure rule, (chooser, finished upload) -> chooser.

Communication is free while it hides behind computing. An upload may hence take SHARE of the seconds that this worker
computes between two of them; the rest is the download's. What a rung would take is the round trip plus its bytes at the
measured speed; speed and computing are medians of the last LOOK_BACK, so that one upload that was lost and sent again,
or the first, for which both sides load and compile what they need, says nothing, and two slow ones do. A rung that does
not fit is left at once, for the densest that does; a denser one is tried, one at a time, once it would have fitted with
room to spare in PATIENCE rounds in a row: noise does not make it swing. Until the line's end was met for the first time
one round is enough, or a short run would be over before its updates are as dense as they can be.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

SHARE = 0.5
ROOM = 0.7
PATIENCE = 3
LOOK_BACK = 3
FASTEST = 10.0  # a transfer is believed to take at least 1 / FASTEST of the time from sending to receipt


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """One upload that got its receipt, accepted or not."""

    rung: int
    bytes: int
    took_s: float
    """From sending to receipt."""
    rtt_s: float
    """Of a message without a payload on an idle line; 0 where nobody has measured it."""
    compute_s: float
    """Between the upload before and this one, without waits; 0 where there was none before."""


@dataclass(frozen=True)
class Chooser:
    """`rung`: the one to use next, of a ladder whose rungs take about `bits` per number, in falling order."""

    bits: Sequence[float]
    rung: int
    calm: int = 0
    """Rounds in a row in which the next denser rung would have fitted with room to spare."""
    speeds: tuple[float, ...] = ()
    """Of the last uploads, bytes per second."""
    rounds_s: tuple[float, ...] = ()
    """Of the last rounds, seconds of computing."""
    settled: bool = False
    """Whether a rung did not fit already."""

    @property
    def bytes_per_s(self) -> float:
        """The link's speed up; 0 before the first upload."""
        return statistics.median_high(self.speeds) if self.speeds else 0.0

    @property
    def compute_s(self) -> float:
        """What a round computes, seconds; 0 before the first."""
        return statistics.median_low(self.rounds_s) if self.rounds_s else 0.0

    def after(self, upload: Uploaded) -> Chooser:
        """The chooser that has seen `upload` too."""
        transfer_s = max(upload.took_s - upload.rtt_s, upload.took_s / FASTEST, 1e-6)
        seen = replace(
            self,
            speeds=(*self.speeds, upload.bytes / transfer_s)[-LOOK_BACK:],
            rounds_s=(*self.rounds_s, *([upload.compute_s] if upload.compute_s > 0 else []))[-LOOK_BACK:],
        )
        if not seen.rounds_s:
            return seen
        expected = [seen._expected_s(upload, rung) for rung in range(len(self.bits))]
        return seen._moved(expected, SHARE * seen.compute_s)

    def _expected_s(self, upload: Uploaded, rung: int) -> float:
        size = upload.bytes * self.bits[rung] / self.bits[upload.rung]
        return upload.rtt_s + size / self.bytes_per_s

    def _moved(self, expected: Sequence[float], budget_s: float) -> Chooser:
        if expected[self.rung] > budget_s and len(self.speeds) < 2:
            return self
        if expected[self.rung] > budget_s:
            fitting = [rung for rung in range(self.rung, len(expected)) if expected[rung] <= budget_s]
            return replace(self, rung=fitting[0] if fitting else len(expected) - 1, calm=0, settled=True)
        if self.rung == 0 or expected[self.rung - 1] > ROOM * budget_s:
            return replace(self, calm=0, settled=self.settled or len(self.speeds) > 1)
        if self.calm + 1 < (PATIENCE if self.settled else 1):
            return replace(self, calm=self.calm + 1)
        return replace(self, rung=self.rung - 1, calm=0)
