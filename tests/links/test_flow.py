"""What TCP makes of a line, in virtual time: exact without chance, and with it what the formulas say."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from lightning_async.links import Brownout, Link
from lightning_async.links.flow import Chance, Lane
from lightning_async.links.link import MSS_BYTES, RTO_S

MEGABYTE = Link(up_mbps=8.0, down_mbps=8.0, latency_ms=100.0)  # a million bytes per second


def transfer(lane: Lane, size: int, piece: int = MSS_BYTES) -> list[float]:
    """When each piece is there, of a sender that always has more."""
    flow, now, arrivals = lane.flow(), 0.0, []
    for _ in range(0, size, piece):
        now = max(now, flow.ready_at, lane.pipe.free_at)
        arrivals.append(flow.send(piece, now))
    return arrivals


def test_bytes_take_their_time_through_the_line_and_then_the_latency():
    flow = Lane(MEGABYTE, "up").flow()
    assert [flow.send(500_000, 0.0), flow.send(250_000, 0.1), flow.send(0, 2.0)] == pytest.approx([0.6, 0.85, 2.1])


def test_all_connections_share_one_queue():
    lane = Lane(MEGABYTE, "up")
    one, other = lane.flow(), lane.flow()
    assert one.send(1_000_000, 0.0) == pytest.approx(1.1)
    assert other.send(1000, 0.5) == pytest.approx(1.101), "behind what the other one sent"
    assert Lane(MEGABYTE, "down").flow().send(1000, 0.5) == pytest.approx(0.601), "the other direction is free"


def test_each_direction_has_its_own_numbers():
    line = Link(up_mbps=8.0, down_mbps=80.0, latency_ms=100.0, down_latency_ms=10.0)
    assert Lane(line, "up").flow().send(1_000_000, 0.0) == pytest.approx(1.1)
    assert Lane(line, "down").flow().send(1_000_000, 0.0) == pytest.approx(0.11)


def test_a_brownout_slows_both_directions_at_once():
    line = Link(up_mbps=8.0, down_mbps=8.0, latency_ms=0.0, brownout=Brownout(every_s=100.0, lasts_s=50.0, factor=0.1))
    ways = [Lane(line, way, seed=3).flow() for way in ("up", "down")]
    took = [[way.send(1000, float(at)) - at for at in range(200)] for way in ways]
    assert took[0] == took[1]
    slow = [t > 0.005 for t in took[0]]
    assert sum(slow) == pytest.approx(100, abs=3)
    assert sum(a != b for a, b in pairwise(slow)) in (3, 4, 5)


def test_jitter_is_bounded_and_never_reorders():
    flow = Lane(Link(latency_ms=10.0, jitter_ms=50.0), "up").flow()
    close = [flow.send(1, i / 1000) for i in range(200)]
    assert close == sorted(close)
    apart = [flow.send(1, 10.0 + i / 10) - 10.0 - i / 10 for i in range(300)]
    assert 0.010 <= min(apart) < 0.012
    assert 0.058 < max(apart) <= 0.0601


def test_a_duplicate_takes_the_line_twice():
    line = Link(up_mbps=8.0, latency_ms=0.0, duplicate=0.25)
    lane = Lane(line, "up")
    took = transfer(lane, 3000 * MSS_BYTES)[-1]
    assert took == pytest.approx(MSS_BYTES * (3000 + lane.doubled) / 1e6)
    assert lane.doubled == pytest.approx(750, rel=0.15)
    assert lane.lost == 0


def test_a_lost_segment_comes_a_round_trip_later_and_all_behind_it_wait():
    line = Link(up_mbps=8.0, latency_ms=50.0, loss=0.01)
    lane = Lane(line, "up", seed=1)
    flow, sent, late = lane.flow(), [], []
    for number in range(200):
        before = lane.lost
        arrival = flow.send(100, number * 0.01)
        sent.append(arrival)
        late += [number] if lane.lost > before else []
    assert late, "something was lost"
    first = late[0]
    usual, repair = first * 0.01 + 0.0001 + 0.05, line.rtt_s
    assert sent[first] == pytest.approx(usual + 0.0001 + repair, abs=1e-6)
    assert sent[first + 5] == sent[first], "what came behind it waited for it"
    assert sent[first - 1] == pytest.approx((first - 1) * 0.01 + 0.0501)


def test_the_loss_of_a_last_segment_costs_a_timeout():
    flow = Lane(Link(up_mbps=1e6, latency_ms=20.0, loss=0.2), "up", seed=1).flow()
    took = sorted({round(flow.send(100, 100.0 * i, last=True) - 100.0 * i, 4) for i in range(300)})
    assert took[:3] == pytest.approx([0.02, 0.02 + RTO_S, 0.02 + 2 * RTO_S], abs=1e-3), "or two, or more"


@pytest.mark.parametrize("loss", [1e-3, 5e-3, 0.01, 0.02, 0.05])
@pytest.mark.parametrize("latency_ms", [10.0, 80.0])
def test_loss_leaves_what_mathis_says(loss, latency_ms):
    line = Link(up_mbps=1000.0, latency_ms=latency_ms, loss=loss)
    took = [transfer(Lane(line, "up", seed), 8_000_000, 5 * MSS_BYTES)[-1] for seed in range(3)]
    assert 3 * 8_000_000 / sum(took) == pytest.approx(line.bytes_per_s("up"), rel=0.2)


def test_a_line_that_loses_little_keeps_its_rate():
    line = Link(up_mbps=8.0, latency_ms=10.0, loss=1e-3)
    assert 8_000_000 / transfer(Lane(line, "up"), 8_000_000)[-1] == pytest.approx(line.bytes_per_s("up"), rel=0.02)


def test_the_same_seed_gives_the_same_line():
    line = Link(latency_ms=20.0, jitter_ms=9.0, loss=0.02, duplicate=0.01)
    runs = [transfer(Lane(line, "up", seed), 500_000) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_chance_hits_its_share_however_the_segments_are_counted():
    for size in (1, 7, 1000):
        chance = Chance(0.05, random.Random(4))
        hits = [chance.among(size) for _ in range(70_000 // size)]
        assert sum(hits) / (70_000 // size * size) == pytest.approx(0.05, rel=0.1)
        assert max(hits) <= size
    assert Chance(0.0, random.Random(4)).among(10**9) == 0
    assert math.isinf(Chance(0.0, random.Random(4))._left)
