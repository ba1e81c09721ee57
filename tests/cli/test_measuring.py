"""The arithmetic of a measured line, in virtual time: rates, round trips, offsets, and how many bytes that takes."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_async.cli import measuring
from lightning_async.cli.measuring import MOST_BYTES, REPEATS, TRIPS, Measured, Meter
from lightning_async.cli.trouble import Ill
from lightning_async.errors import UnreachableError
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, Frame


class Line:
    """A line of these rates, bytes per second, to a server whose clock is `ahead_s` of ours; in place of a Talk and of
    the module `time`. After `most_bytes` the server answers no more Probes."""

    def __init__(self, up: float, down: float, rtt_s: float, ahead_s: float = 0.0, most_bytes: float = 1e12) -> None:
        self.up, self.down, self.rtt_s, self.ahead_s, self.left = up, down, rtt_s, ahead_s, most_bytes
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = perf_counter = time

    def ask(self, probe: m.Request, timeout_s: float, payload: tuple[Frame, ...] = ()) -> Envelope:
        assert isinstance(probe, m.Probe)
        sent = sum(map(len, payload))
        cost = sent + probe.down_bytes
        if cost > self.left:
            return Envelope(1, m.Refused(reason="limit", detail="enough"))
        self.left -= cost
        self.now += self.rtt_s / 2 + sent / self.up
        there = self.now + self.ahead_s
        self.now += self.rtt_s / 2 + probe.down_bytes / self.down
        echo = m.Echo(received_at=there, answered_at=there, layout="other" if probe.tensors else "")
        return Envelope(1, echo, (bytes(probe.down_bytes),) if probe.down_bytes else ())


def measured(
    monkeypatch: pytest.MonkeyPatch, line: Line, seconds: float = 8.0, tensors: list[Any] | None = None
) -> Measured:
    monkeypatch.setattr(measuring, "time", line)
    return Meter(line, seconds, 10.0, tensors or []).measure()  # type: ignore[arg-type]


@pytest.mark.parametrize(("up", "down"), [(1e6, 4e6), (2.5e4, 5e4), (1e5, 1e7), (1e7, 1e4)])
@pytest.mark.parametrize("rtt_s", [0.001, 0.1, 0.3])
def test_rates_and_round_trips_are_those_of_the_line(
    monkeypatch: pytest.MonkeyPatch, up: float, down: float, rtt_s: float
) -> None:
    line = Line(up, down, rtt_s)
    found = measured(monkeypatch, line)
    assert found.rtt_s == pytest.approx(rtt_s)
    assert found.up_bytes_per_s == pytest.approx(up, rel=0.01)
    assert found.down_bytes_per_s == pytest.approx(down, rel=0.01)
    assert 1 <= found.trips <= TRIPS
    assert max(found.sent_bytes, found.received_bytes) <= (REPEATS + 0.5) * MOST_BYTES
    assert line.now - 1000.0 < 3 * 8.0, "about the seconds that it was given"


def test_what_hides_below_the_round_trip_is_not_told_as_more_than_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, Line(1e9, 1e8, 0.6))
    assert found.up_bytes_per_s is not None
    assert 1e7 < found.up_bytes_per_s < 1e9


def test_the_clock_is_compared_on_the_quickest_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, Line(1e6, 1e6, 0.2, ahead_s=50.0))
    assert found.offset_s == pytest.approx(-50.0)
    assert found.offset_error_s == pytest.approx(0.1)


def test_what_the_server_still_answers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, Line(1e6, 2e6, 0.01, most_bytes=100_000.0))
    assert found.limited == "enough"
    assert found.up_bytes_per_s == pytest.approx(1e6, rel=0.01)
    assert found.down_bytes_per_s == pytest.approx(2e6, rel=0.01)
    assert measured(monkeypatch, Line(1e6, 2e6, 0.01, most_bytes=0.0)).up_bytes_per_s is None
    with pytest.raises(Ill, match="enough"):
        measured(monkeypatch, Line(1e6, 2e6, 0.01, most_bytes=-1.0))


def test_a_model_goes_with_the_first_probe_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, Line(1e6, 1e6, 0.01), tensors=[["w"]]).layout == "other"


def test_a_line_that_breaks_and_a_server_that_says_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(1e6, 1e6, 0.01)

    def breaks(*_: object) -> Envelope:
        raise UnreachableError("gone")

    for answer, code in (
        (breaks, "line_lost"),
        (lambda *_: Envelope(1, m.Ack(version=1)), "not_ours"),
        (lambda *_: Envelope(1, m.Echo(received_at=1.0, answered_at=1.0), (b"more",)), "not_ours"),
        (lambda *_: Envelope(1, m.Refused(reason="protocol", detail="unknown message")), "server_older"),
    ):
        line.ask = answer  # type: ignore[method-assign]
        with pytest.raises(Ill) as caught:
            measured(monkeypatch, line)
        assert caught.value.trouble.code == code
