"""Pipes and paths: what a transfer takes, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_async.errors import ConfigError
from lightning_async.simulation.network import MSS_BYTES, RTO_S, Brownout, Link, Path, Pipe

RNG = np.random.default_rng(0)


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


def test_a_path_is_as_fast_as_its_slowest_pipe_and_each_is_busy_for_the_others():
    link, server = Link(latency_ms=500.0), Pipe(100.0)
    a, b = (Path([Pipe(50.0), server], link, RNG) for _ in range(2))
    assert a.arrival(100, 0.0) == 2.5
    assert b.arrival(100, 0.0) == 2.5, "its own pipe is the slower one"
    assert a.arrival(100, 2.0) == 4.5
    assert Path([Pipe(1e9), server], link, RNG).arrival(300, 2.0) == 6.5, "behind what the others sent"


def test_jitter_is_bounded_and_never_reorders():
    path = Path([Pipe(1e9)], Link(latency_ms=10.0, jitter_ms=50.0), np.random.default_rng(1))
    close = [path.arrival(1, i / 1000) for i in range(200)]
    assert close == sorted(close)
    apart = [path.arrival(1, 10.0 + i / 10) - 10.0 - i / 10 for i in range(200)]
    assert 0.010 <= min(apart) < 0.012
    assert 0.058 < max(apart) <= 0.060 + 1e-9


def test_loss_costs_rate_by_mathis_and_now_and_then_a_timeout():
    link = Link(up_mbps=1000.0, latency_ms=50.0, loss=0.01)
    assert link.bytes_per_s("up") == pytest.approx(MSS_BYTES / 0.1 * (1.5 / 0.01) ** 0.5)
    assert Link(up_mbps=0.1, loss=0.01).bytes_per_s("up") == 12_500.0, "a thin line is not made faster by it"
    path = Path([Pipe(1e12)], link, np.random.default_rng(1))
    took = [path.arrival(100, 10.0 * i) - 10.0 * i for i in range(2000)]
    assert {round(t, 6) for t in took} == {0.05, 0.05 + RTO_S}
    assert sum(t > 0.1 for t in took) == pytest.approx(20, abs=15)


@pytest.mark.parametrize(
    "wrong",
    [{"up_mbps": 0.0}, {"latency_ms": -1.0}, {"loss": 1.0}, {"jitter_ms": -1.0}],
)
def test_an_impossible_line_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"got Link.*expected"):
        Link(**wrong)


def test_an_impossible_brownout_is_refused():
    with pytest.raises(ConfigError, match="expected 0 < lasts_s"):
        Brownout(every_s=5.0, lasts_s=6.0)
