"""How fast versions come and how long a worker's rounds last, from what the server sees, on the server's clock. Pure.

A worker's round, as the server sees it, runs from one of its updates to the next: computing, both ways of the link and
whatever else the worker does. How many versions are made meanwhile is predicted from the run's rate when the round
begins, and the mean error of that prediction is kept: as TCP keeps the deviation of its round trips (Jacobson 1988).
Nothing that a worker says about itself is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_async.telemetry import Ewma

RATE_WEIGHT = 0.05  # of the newest interval between two versions: about forty are remembered
ROUND_WEIGHT = 0.2  # of a worker's newest round
MOST_REFUSED = 2  # one may be too old, of a worker that a barrier did not wait for


@dataclass(frozen=True)
class Rate:
    """How fast a run makes versions, and with how many live workers it did so."""

    interval_s: Ewma = field(default=Ewma(weight=RATE_WEIGHT))
    live: Ewma = field(default=Ewma(weight=RATE_WEIGHT))
    last_at: float | None = None

    def after(self, now: float, live: int) -> Rate:
        """Once a version was made at time `now`, while this many workers were there."""
        took = self.interval_s if self.last_at is None else self.interval_s.after(max(0.0, now - self.last_at))
        return Rate(took, self.live.after(live), now)

    def expected(self, seconds: float, live: int) -> float | None:
        """Versions to come in that time with `live` workers; None before two versions were made.

        Workers that have just come count at once; of those that have gone, what they made may still be under a round.
        """
        interval = self.interval_s.value
        if interval is None:
            return None
        more = max(1.0, live / max(self.live.value or 1.0, 1.0))
        return more * seconds / interval if interval > 0 else math.inf

    def paused(self) -> Rate:
        """The server stops: the time until the next version says nothing."""
        return replace(self, last_at=None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"interval_s": self.interval_s.value, "live": self.live.value, "last_at": self.last_at}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Rate:
        """What `as_dict` gave."""
        interval_s, live = Ewma(values["interval_s"], RATE_WEIGHT), Ewma(values["live"], RATE_WEIGHT)
        return cls(interval_s, live, values["last_at"])


@dataclass(frozen=True)
class Pace:
    """One worker's rounds. `since`: when the present one began, None while it is away; `version` was the run's then.

    `late`: a barrier went on without it, and waits for it again once it has sent something. `refused`: how many of its
    updates in a row; from MOST_REFUSED on no barrier waits for it until one is taken, or it could hold all up for good.
    """

    round_s: Ewma = field(default=Ewma(weight=ROUND_WEIGHT))
    error: Ewma = field(default=Ewma(weight=ROUND_WEIGHT))  # mean distance of predicted versions from made ones
    since: float | None = None
    version: int = 0
    late: bool = False
    refused: int = 0

    def begun(self, now: float, version: int) -> Pace:
        """It came, or the run got its first parameters: a round begins."""
        return replace(self, since=now, version=version, late=False)

    def away(self) -> Pace:
        """It has gone; how it was is remembered."""
        return replace(self, since=None, late=False)

    def after(self, now: float, version: int, rate: Rate, live: int, taken: bool = True) -> Pace:
        """An update of it has come, and was accepted or not."""
        refused = 0 if taken else self.refused + 1
        if self.since is None:
            return replace(self.begun(now, version), refused=refused)
        took, made = max(0.0, now - self.since), max(0, version - self.version)
        usual = self.round_s.value
        foreseen = rate.expected(took if usual is None else usual, live)
        wrong = abs(made - foreseen) if foreseen is not None and math.isfinite(foreseen) else made / 2
        late = refused >= MOST_REFUSED
        return Pace(self.round_s.after(took), self.error.after(wrong), now, version, late, refused)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        averages = {"round_s": self.round_s.value, "error": self.error.value}
        return averages | {"since": self.since, "version": self.version, "late": self.late, "refused": self.refused}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Pace:
        """What `as_dict` gave."""
        round_s, error = Ewma(values["round_s"], ROUND_WEIGHT), Ewma(values["error"], ROUND_WEIGHT)
        return cls(round_s, error, values["since"], values["version"], values["late"], values.get("refused", 0))
