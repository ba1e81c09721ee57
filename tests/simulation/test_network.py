"""Paths: what a message takes, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_async.links.link import RTO_S, Link
from lightning_async.links.pipe import Pipe
from lightning_async.simulation.network import Path

RNG = np.random.default_rng(0)


def test_a_path_is_as_fast_as_its_slowest_pipe_and_each_is_busy_for_the_others():
    link, server = Link(latency_ms=500.0), Pipe(100.0)
    a, b = (Path([Pipe(50.0), server], link, "up", RNG) for _ in range(2))
    assert a.arrival(100, 0.0) == 2.5
    assert b.arrival(100, 0.0) == 2.5, "its own pipe is the slower one"
    assert a.arrival(100, 2.0) == 4.5
    assert Path([Pipe(1e9), server], link, "up", RNG).arrival(300, 2.0) == 6.5, "behind what the others sent"


def test_jitter_is_bounded_and_never_reorders():
    path = Path([Pipe(1e9)], Link(latency_ms=10.0, jitter_ms=50.0), "up", np.random.default_rng(1))
    close = [path.arrival(1, i / 1000) for i in range(200)]
    assert close == sorted(close)
    apart = [path.arrival(1, 10.0 + i / 10) - 10.0 - i / 10 for i in range(200)]
    assert 0.010 <= min(apart) < 0.012
    assert 0.058 < max(apart) <= 0.060 + 1e-9


def test_loss_now_and_then_costs_a_timeout():
    link = Link(up_mbps=1000.0, latency_ms=50.0, loss=0.01)
    path = Path([Pipe(1e12)], link, "up", np.random.default_rng(1))
    took = [path.arrival(100, 10.0 * i) - 10.0 * i for i in range(2000)]
    assert {round(t, 6) for t in took} == {0.05, 0.05 + RTO_S}
    assert sum(t > 0.1 for t in took) == pytest.approx(20, abs=15)
