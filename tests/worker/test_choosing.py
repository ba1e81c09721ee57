"""The rung follows the link: against a model of links and rounds, without a clock."""

from __future__ import annotations

import itertools

import pytest

from lightning_async.codecs import codec
from lightning_async.worker.choosing import PATIENCE, SHARE, Chooser, Uploaded

LADDER = codec("auto").ladder
assert LADDER is not None
BITS, LAST = LADDER.bits, len(LADDER.bits) - 1
D = 10_000_000


class Line:
    """A link of some speed under a worker that computes for some seconds a round."""

    def __init__(self, bytes_per_s: float, compute_s: float, rtt_s: float = 0.05, start: int = 6) -> None:
        self.bytes_per_s, self.compute_s, self.rtt_s = bytes_per_s, compute_s, rtt_s
        self.chooser = Chooser(BITS, start)
        self.rungs: list[int] = []

    def seconds(self, rung: int) -> float:
        return self.rtt_s + BITS[rung] * D / 8 / self.bytes_per_s

    def rounds(self, n: int, noise: float = 0.0) -> int:
        for i in range(n):
            rung = self.chooser.rung
            took = self.seconds(rung) * (1 + noise * (-1) ** i)
            size = int(BITS[rung] * D / 8)
            self.chooser = self.chooser.after(
                Uploaded(rung=rung, bytes=size, took_s=took, rtt_s=self.rtt_s, compute_s=self.compute_s)
            )
            self.rungs.append(self.chooser.rung)
        return self.chooser.rung


@pytest.mark.parametrize("mbps", [0.2, 1, 5, 20, 100, 1000, 20_000])
@pytest.mark.parametrize("compute_s", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("start", [0, 6, LAST])
def test_uploads_hide_behind_computing_and_none_that_is_much_denser_would(mbps: float, compute_s: float, start: int):
    line = Line(mbps * 125_000, compute_s, start=start)
    rung = line.rounds(100)
    budget = SHARE * compute_s
    assert line.seconds(rung) <= budget or rung == LAST
    assert rung == 0 or line.seconds(rung - 1) > 0.69 * budget


def test_up_with_every_round_until_one_did_not_fit():
    line = Line(1e9, 10.0)
    line.rounds(6)
    assert line.rungs == [5, 4, 3, 2, 1, 0]


def test_down_at_once_and_then_up_by_one_rung_after_three_rounds_of_room():
    line = Line(50_000.0, 10.0)
    settled = line.rounds(30)
    assert line.seconds(settled) <= SHARE * 10.0 < line.seconds(settled - 1)
    line.bytes_per_s = 20_000.0
    lower = line.rounds(2)
    assert lower > settled
    assert line.seconds(lower) <= SHARE * 10.0
    line.bytes_per_s = 1e9
    line.rounds(1)  # the median is still the slow one
    assert line.rounds(PATIENCE - 1) == lower
    assert line.rounds(1) == lower - 1


def test_one_upload_that_was_lost_and_sent_again_changes_nothing():
    line = Line(1e6, 4.0)
    settled = line.rounds(40)
    line.bytes_per_s /= 100
    assert line.rounds(1) == settled
    line.bytes_per_s *= 100
    assert line.rounds(20) == settled


def test_the_first_upload_which_waits_for_what_is_loaded_and_compiled_changes_nothing():
    line = Line(1e6, 4.0)
    first = line.chooser.rung
    line.bytes_per_s /= 1000
    assert line.rounds(1) == first
    line.bytes_per_s *= 1000
    assert line.rounds(1) == first - 1, "it says nothing against a denser one either"
    line.bytes_per_s /= 1000
    assert line.rounds(2) == LAST, "two in a row do"


def test_a_round_before_which_there_was_no_upload_says_nothing_of_computing():
    line = Line(1e6, 0.0)
    line.rounds(1)
    line.compute_s = 4.0
    line.rounds(2)
    assert line.rungs == [6, 5, 4]


@pytest.mark.parametrize("mbps", [1, 3, 10, 30, 100])
def test_noise_does_not_make_it_swing(mbps: float):
    line = Line(mbps * 125_000, 5.0)
    line.rounds(60, noise=0.2)
    settled = line.rungs[30:]
    assert sum(a != b for a, b in itertools.pairwise(settled)) <= 1


def test_a_round_trip_that_no_rung_can_change_costs_no_density():
    """10 kB over a fast line with 300 ms of latency: what is slow is not the bytes."""
    near, far = Line(1e8, 2.0, rtt_s=0.001), Line(1e8, 2.0, rtt_s=0.3)
    assert near.rounds(60) == far.rounds(60) == 0


def test_a_round_trip_longer_than_the_round_takes_the_sparsest():
    assert Line(1e8, 0.1, rtt_s=0.3).rounds(3) == LAST
