"""A line measured with Probes: round trip, both bandwidths, clock offset. A few million bytes and a few seconds.

What a transfer takes beyond a round trip is what its bytes took; sizes grow until a transfer is long enough to say
something. The clock's offset is NTP's: of the quickest round trip, half of it lies on each side of the server's answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from lightning_async.cli.trouble import Ill
from lightning_async.errors import NetworkError, ProtocolError

if TYPE_CHECKING:
    from lightning_async.cli.asking import Talk
    from lightning_async.wire.messages import Echo

TRIPS = 10
FIRST_BYTES, MOST_BYTES, GROWTH = 2**14, 2**22, 4
LONG_S = 0.5  # a transfer that takes as long says enough
REPEATS = 3  # of the largest
SLOWEST_BYTES_S = 10_000.0  # slower lines are given up on


@dataclass(frozen=True)
class Trip:
    """One Probe: when it left and came back by this machine's clock, and how long that was."""

    left_at: float
    back_at: float
    took_s: float
    echo: Echo

    @property
    def offset_s(self) -> float:
        """This machine's clock minus the server's, if both ways took as long."""
        return ((self.left_at - self.echo.received_at) + (self.back_at - self.echo.answered_at)) / 2


@dataclass(frozen=True)
class Measured:
    """A line, and the other end. Rates in bytes per second; None where nothing could be measured. `offset_s` is this
    machine's clock minus the server's, right within `offset_error_s`."""

    rtt_s: float
    rtt_least_s: float
    rtt_most_s: float
    trips: int
    up_bytes_per_s: float | None
    down_bytes_per_s: float | None
    sent_bytes: int
    received_bytes: int
    offset_s: float
    offset_error_s: float
    host: dict[str, Any]
    layout: str
    limited: str = ""  # what the server said when it had enough


class Meter:
    """Measures over `talk` for at most about `seconds`."""

    def __init__(self, talk: Talk, seconds: float, timeout_s: float, tensors: Sequence[Any] = ()) -> None:
        self._talk, self._seconds, self._timeout_s, self._tensors = talk, seconds, timeout_s, list(tensors)
        self._sent = self._received = 0
        self._limited = ""

    def measure(self) -> Measured:
        """Raises Ill for a line that breaks, or a server that knows no Probes."""
        first = self._trip(tensors=self._tensors)
        if first is None:
            raise Ill("no_answer", self._limited)
        trips: list[Trip] = []
        deadline = time.monotonic() + self._seconds / 4
        while len(trips) < TRIPS and (not trips or time.monotonic() < deadline):
            trip = self._trip()
            if trip is None:
                break
            trips.append(trip)
        took = sorted(trip.took_s for trip in trips or [first])
        up, down = (self._rate(direction, median(took)) for direction in ("up", "down"))
        quickest = min(trips or [first], key=lambda trip: trip.took_s)
        return Measured(
            rtt_s=median(took),
            rtt_least_s=took[0],
            rtt_most_s=took[-1],
            trips=len(took),
            up_bytes_per_s=up,
            down_bytes_per_s=down,
            sent_bytes=self._sent,
            received_bytes=self._received,
            offset_s=quickest.offset_s,
            offset_error_s=quickest.took_s / 2,
            host=dict(first.echo.host),
            layout=first.echo.layout,
            limited=self._limited,
        )

    def _rate(self, direction: str, rtt_s: float) -> float | None:
        """Bytes per second of the largest transfers for which there was time, their median."""
        deadline = time.monotonic() + self._seconds * 3 / 8
        size = FIRST_BYTES
        smaller: list[float] = []
        rates: list[float] = []
        while True:
            trip = self._trip(up_bytes=size) if direction == "up" else self._trip(down_bytes=size)
            if trip is None:
                return median(rates or smaller) if rates or smaller else None
            took_s = max(trip.took_s - rtt_s, trip.took_s / 10)  # below a tenth of it there is nothing to be seen
            grows = size < MOST_BYTES and took_s < LONG_S
            rates.append(size / took_s)
            left_s = deadline - time.monotonic()
            if left_s < (GROWTH if grows else 1) * took_s + rtt_s or (not grows and len(rates) >= REPEATS):
                return median(rates)
            if grows:
                size, smaller, rates = min(MOST_BYTES, GROWTH * size), rates, []

    def _trip(self, up_bytes: int = 0, down_bytes: int = 0, tensors: Sequence[Any] = ()) -> Trip | None:
        """One Probe there and back; None when the server answers no more of them for now."""
        from lightning_async.wire.messages import Echo, Probe, Reason, Refused

        payload = (os.urandom(up_bytes),) if up_bytes else ()
        timeout_s = self._timeout_s + (up_bytes + down_bytes) / SLOWEST_BYTES_S
        left_at, began = time.time(), time.perf_counter()
        try:
            answer = self._talk.ask(Probe(down_bytes=down_bytes, tensors=list(tensors)), timeout_s, payload)
        except (NetworkError, ProtocolError) as error:
            raise Ill("line_lost", f"while the line was measured: {error}") from error
        took_s, back_at = time.perf_counter() - began, time.time()
        echo = answer.message
        if isinstance(echo, Refused) and echo.reason == Reason.LIMIT.value:
            self._limited = echo.detail
            return None
        if isinstance(echo, Refused) and echo.reason == Reason.PROTOCOL.value:
            raise Ill("server_older", f"the server has no answer to a Probe: {echo.detail}")
        if not isinstance(echo, Echo) or sum(map(len, answer.payload)) != down_bytes:
            raise Ill("not_ours", f"a Probe for {down_bytes} bytes was answered by {str(echo)[:200]}")
        self._sent, self._received = self._sent + up_bytes, self._received + down_bytes
        return Trip(left_at, back_at, took_s, echo)
