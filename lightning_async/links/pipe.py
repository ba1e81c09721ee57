"""A line's rate, in virtual time: when the last of so many bytes is through. Brownouts come and go on their own."""

from __future__ import annotations

import math

from lightning_async.links.link import Brownout


class Pipe:
    """One direction of a line. It passes bytes on in the order in which they came. `phase_s`: when the first brownout
    begins."""

    def __init__(self, bytes_per_s: float, brownout: Brownout | None = None, phase_s: float = 0.0) -> None:
        self._rate, self._brownout, self._phase = bytes_per_s, brownout, phase_s
        self.free_at = 0.0  # when it is through with what it has

    def send(self, size: float, now: float) -> float:
        """When the last of `size` bytes that came at `now` is through."""
        self.free_at = self._through(max(now, self.free_at), size)
        return self.free_at

    def _through(self, begin: float, size: float) -> float:
        if self._brownout is None:
            return begin + size / self._rate
        at = begin
        while True:
            rate, until = self._piece(at)
            if size <= rate * (until - at):
                return at + (size / rate if size else 0.0)
            size -= rate * (until - at)
            at = max(until, math.nextafter(at, math.inf))  # rounding may leave an end in the piece before it

    def _piece(self, at: float) -> tuple[float, float]:
        """(rate, until when it holds) of the line at time `at`."""
        out = self._brownout
        assert out is not None
        turn = math.floor((at - self._phase) / out.every_s)
        begin = self._phase + turn * out.every_s
        if at < begin + out.lasts_s:
            return self._rate * out.factor, begin + out.lasts_s
        return self._rate, begin + out.every_s
