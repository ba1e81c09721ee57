"""How a key behaves: how much it may say, and what becomes of one that says too much, or what it may not. Pure.

Two token buckets for each key, and for each address from which keys come that are on no list. One fills with messages
that may come; who is faster is not heard. The other fills with forgiveness for what was wrong: bytes that are no
message, a right that its key has not, a message beyond the rate. An honest worker uses up neither. Who empties the
second one is put out, and stays out for BAN_S.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

MESSAGES_S, BURST = 2000.0, 10_000.0  # of one key
FORGIVEN_S, MOST_FORGIVEN = 1.0, 100.0
BAN_S = 30.0
MOST_RECORDS = 4096


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


@dataclass
class _Record:
    """Of one key, or of one address."""

    rate: Bucket
    patience: Bucket
    out_until: float


class Conduct:
    """Of everybody by some name: a key, or where somebody comes from. At most `most` are remembered, and whoever was
    heard of last for longest: forgotten is forgiven."""

    def __init__(self, most: int = MOST_RECORDS) -> None:
        self._records: OrderedDict[bytes, _Record] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        return len(self._records)

    def may_speak(self, name: bytes, now: float) -> bool:
        """Whether one more message of `name` is within its rate."""
        return self._of(name, now).rate.take(now)

    def blame(self, name: bytes, now: float) -> bool:
        """It has done something wrong; whether it is to be put out now."""
        record = self._of(name, now)
        if record.patience.take(now):
            return False
        record.out_until = now + BAN_S
        return True

    def is_out(self, name: bytes, now: float) -> bool:
        """Whether it was put out not long ago."""
        record = self._records.get(name)
        return record is not None and now < record.out_until

    def _of(self, name: bytes, now: float) -> _Record:
        if name not in self._records:
            rate, patience = (
                Bucket(MESSAGES_S, BURST, BURST, now),
                Bucket(FORGIVEN_S, MOST_FORGIVEN, MOST_FORGIVEN, now),
            )
            self._records[name] = _Record(rate, patience, -math.inf)
            if len(self._records) > self._most:
                self._records.popitem(last=False)
        self._records.move_to_end(name)
        return self._records[name]
