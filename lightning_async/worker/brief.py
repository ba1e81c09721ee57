"""Whether the end of a round waits for its exchange.

On a fast link the exchange of a small model takes a millisecond or two. Carried in the background it takes longer,
and costs training more than the wait: two threads pass the interpreter's lock to and fro a dozen times. So a round
that ends waits for BRIEF_S; when that was in vain, the next rounds do not wait, ever more of them.
"""

from __future__ import annotations

from collections.abc import Callable

BRIEF_S = 0.003
MOST_SKIPPED = 256  # rounds without a wait before it is tried again


class Brief:
    """Decides from how the last waits ended."""

    def __init__(self) -> None:
        self._skip = self._skipped = 0

    def wait(self, wait: Callable[[float], bool]) -> None:
        """A round has ended: perhaps `wait(seconds)`, which says whether the exchange was over in time."""
        self._skipped += 1
        if self._skipped > self._skip:
            self._skip = 0 if wait(BRIEF_S) else min(MOST_SKIPPED, 2 * self._skip + 1)
            self._skipped = 0
