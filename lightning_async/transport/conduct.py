"""How a key behaves: how much it may say, and what becomes of one that says too much, or what it may not. Pure.

Two token buckets for each key. One fills with messages that may come; who is faster is not heard. The other fills with
forgiveness for what was wrong: bytes that are no message, a right that its key has not, a message beyond the rate. An
honest worker uses up neither. Who empties the second one is put out, and stays out for BAN_S.
"""

from __future__ import annotations

from dataclasses import dataclass

MESSAGES_S, BURST = 2000.0, 10_000.0  # of one key
FORGIVEN_S, MOST_FORGIVEN = 1.0, 100.0
BAN_S = 30.0


@dataclass
class Bucket:
    """Holds at most `most`, fills by `per_s`."""

    per_s: float
    most: float
    level: float
    at: float

    def take(self, now: float, amount: float = 1.0) -> bool:
        """`amount` out of it, if it has so much."""
        self.level = min(self.most, self.level + self.per_s * max(0.0, now - self.at))
        self.at = max(self.at, now)
        if self.level < amount:
            return False
        self.level -= amount
        return True


class Conduct:
    """Of all keys. Who is not on the list shares one record, so that made-up keys take no memory."""

    def __init__(self) -> None:
        self._rates: dict[bytes, Bucket] = {}
        self._patience: dict[bytes, Bucket] = {}
        self._banned: dict[bytes, float] = {}

    def may_speak(self, key: bytes, now: float) -> bool:
        """Whether one more message of `key` is within its rate."""
        return self._rates.setdefault(key, Bucket(MESSAGES_S, BURST, BURST, now)).take(now)

    def blame(self, key: bytes, now: float) -> bool:
        """It has done something wrong; whether it is to be put out now."""
        if self._patience.setdefault(key, Bucket(FORGIVEN_S, MOST_FORGIVEN, MOST_FORGIVEN, now)).take(now):
            return False
        self._banned[key] = now + BAN_S
        return True

    def is_out(self, key: bytes, now: float) -> bool:
        """Whether it was put out not long ago."""
        if now < self._banned.get(key, now):
            return True
        self._banned.pop(key, None)
        return False
