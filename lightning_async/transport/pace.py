"""How fast chunks follow each other: from measured round trips and bandwidth, as large and as many as keep a line busy,
and no more, so that a small message between them waits for a second at most. Pure.
"""

from __future__ import annotations

import math
from collections import deque

THIN_CHUNK, LEAST_CHUNK, MOST_CHUNK = 8 * 1024, 32 * 1024, 4 * 2**20  # the first where the second takes a second
LEAST_WINDOW = 2 * LEAST_CHUNK
USUAL_WINDOW = 256 * 1024  # under way where the line is not too slow for it
SHARE = 128  # of a message may be under way, where its line needs no more to be busy: what a disconnect costs
CHUNKS = 4  # in a window
SPAN_S = 1.0  # what a window takes on its line at most
LEAST_MEASURED_S = 0.05  # acknowledgements come in bursts: in less than this a rate is none
STALL_S = 2.0  # without a word from the receiver, before the bytes under way are added
LATEST_S = 20.0
MOST_DOUBLINGS = 5


class Pace:
    """Of one message of `total` bytes. `bytes_per_s`: of the line, if it was measured before."""

    def __init__(self, total: int, now: float, bytes_per_s: float | None = None) -> None:
        self.bytes_per_s, self.rtt_s = bytes_per_s, math.inf
        self._total, self._sent = total, deque[tuple[int, float]]()  # what was sent up to there, and when
        self._since = (0, now)  # what was there at the beginning of this measurement
        self.heard_at, self._silences = now, 0

    @property
    def window(self) -> int:
        """Bytes that may be under way."""
        if self.bytes_per_s is None:
            return LEAST_WINDOW
        busy = 2 * self.bytes_per_s * (self.rtt_s if math.isfinite(self.rtt_s) else 0.0)
        most = min(max(busy, self.bytes_per_s * SPAN_S), CHUNKS * MOST_CHUNK)
        return int(max(2 * self._least, min(most, max(USUAL_WINDOW, self._total / SHARE, busy))))

    @property
    def chunk(self) -> int:
        """Bytes of the next chunk."""
        return max(self._least, self.window // CHUNKS)

    @property
    def _least(self) -> int:
        """Of a chunk; a window has two of them."""
        return THIN_CHUNK if self.bytes_per_s is not None and self.bytes_per_s * SPAN_S < LEAST_CHUNK else LEAST_CHUNK

    def sent(self, upto: int, now: float) -> None:
        """A chunk that ends at byte `upto` was sent."""
        if not self._sent:
            self.heard_at = now  # nothing was owed until now
        self._sent.append((upto, now))

    def arrived(self, upto: int, now: float) -> None:
        """The receiver has everything up to byte `upto`."""
        self.heard_at, self._silences = now, 0
        while self._sent and self._sent[0][0] <= upto:
            self.rtt_s = min(self.rtt_s, max(1e-5, now - self._sent.popleft()[1]))
        count, took_s = upto - self._since[0], now - self._since[1]
        whole = upto >= self._total and self.bytes_per_s is None
        if count > 0 and (whole or took_s >= max(LEAST_MEASURED_S, min(self.rtt_s, SPAN_S))):
            rate = count / max(took_s, 1e-6)
            before = rate if self.bytes_per_s is None else self.bytes_per_s
            self.bytes_per_s = max(rate, (before + rate) / 2)  # a line that was not full is found faster at once
            self._since = (upto, now)

    def again(self, base: int, now: float) -> None:
        """What was sent after byte `base` is taken for lost."""
        self._sent.clear()
        self._since, self.heard_at = (base, now), now

    def stalled(self, now: float) -> bool:
        """Whether the receiver should have said something by now; then it is given twice the time."""
        under_way_s = self.window / (self.bytes_per_s or LEAST_WINDOW)
        rtt_s = self.rtt_s if math.isfinite(self.rtt_s) else 0.0
        allowed_s = (STALL_S + 4 * (rtt_s + under_way_s)) * 2**self._silences
        if now - self.heard_at < min(LATEST_S, allowed_s):
            return False
        self._silences, self.heard_at = min(MOST_DOUBLINGS, self._silences + 1), now
        return True
