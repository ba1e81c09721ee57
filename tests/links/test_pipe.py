"""A line's rate in virtual time, computed by hand."""

from __future__ import annotations

import itertools

import pytest

from lightning_async.links import Brownout
from lightning_async.links.pipe import Pipe


def test_a_pipe_passes_bytes_on_at_its_rate_one_message_after_the_other():
    pipe = Pipe(100.0)
    assert [pipe.send(50, 1.0), pipe.send(50, 1.0), pipe.send(100, 10.0)] == [1.5, 2.0, 11.0]


def test_in_a_brownout_it_is_slower_and_then_catches_up():
    out = Brownout(every_s=10.0, lasts_s=2.0, factor=0.5)
    pipe = Pipe(100.0, out, phase_s=3.0)
    assert pipe.send(100, 0.0) == 1.0, "before"
    assert pipe.send(300, 2.0) == pytest.approx(6.0), "100 before, 100 in two slow seconds, 100 after"
    assert pipe.send(50, 13.5) == pytest.approx(14.5), "the next one"


def test_during_an_outage_nothing_passes():
    pipe = Pipe(100.0, Brownout(every_s=10.0, lasts_s=4.0), phase_s=0.0)
    assert pipe.send(100, 1.0) == 5.0
    assert pipe.send(700, 5.0) == pytest.approx(16.0), "five seconds, an outage of four, two more"


@pytest.mark.parametrize(
    ("out", "phase_s", "began"),
    [
        (Brownout(every_s=10.0, lasts_s=0.7753098473019817), 9.391491627785106, 1019.0),
        (Brownout(every_s=0.1, lasts_s=0.06762495800915991, factor=0.5), 0.059115343500130396, 0.5),
        (Brownout(every_s=60.0, lasts_s=15.586560313908919), 45.65686425250923, 50.0),
    ],
)
def test_the_end_of_a_cycle_is_passed_whatever_rounding_makes_of_it(
    monkeypatch: pytest.MonkeyPatch, out: Brownout, phase_s: float, began: float
) -> None:
    """These ends, as computed, lie in the cycle before them: bytes that cross one must not wait there for ever."""
    pieces, piece = itertools.count(), Pipe._piece

    def counted(pipe: Pipe, at: float) -> tuple[float, float]:
        assert next(pieces) < 10_000, "it stands still"
        return piece(pipe, at)

    monkeypatch.setattr(Pipe, "_piece", counted)
    seconds = 10 * out.every_s
    through = Pipe(1000.0, out, phase_s).send(1000.0 * seconds, began)
    share = 1.0 - out.lasts_s / out.every_s * (1.0 - out.factor)
    assert through - began == pytest.approx(seconds / share, rel=0.25)
