"""Simulations as a whole: the real server and workers in virtual time, computed by hand where they can be."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from lightning_async.errors import AsyncWANError
from lightning_async.simulation import Simulation, scenario_of, simulate
from lightning_async.wire.session import State

LINE = {"up_mbps": 100.0, "down_mbps": 100.0, "latency_ms": 10.0}


def scene(*groups: dict[str, Any], run: dict[str, Any] | None = None, **rest: Any) -> Any:
    groups = tuple({"link": LINE, **group} for group in groups)
    values = {
        "task": "synthetic()",
        "step_s": 1.0,
        "workers": list(groups),
        "run": {"local_steps": 4, "compression": "none", **(run or {})},
    }
    return scenario_of({**values, "seconds": 1000.0, **rest})


THREE = {"speeds": [2.0, 1.0, 0.3]}


def test_the_same_seed_gives_the_same_run_and_another_one_another():
    scenario = scene(
        {**THREE, "link": {**LINE, "jitter_ms": 30.0, "loss": 0.02}},
        run={"total_steps": 400, "compression": "topk(density=0.5)"},
        task="synthetic(d=64)",
    )
    first = simulate(scenario)
    assert simulate(scenario) == first
    other = simulate(scene(THREE, run={"total_steps": 400, "compression": "topk(density=0.5)"}, seed=1))
    assert other.curve != first.curve


def test_one_worker_alone_takes_the_time_that_its_steps_take():
    result = simulate(scene({}, run={"total_steps": 40}, step_jitter=0.0))
    (worker,) = result.workers
    assert (worker.steps, worker.accepted, result.versions) == (41, 10, 10), "it learns of the end after a step more"
    assert worker.utilisation == pytest.approx(1.0, abs=1e-3), "but for the brief waits at the ends of rounds"
    assert 41.0 < result.seconds < 41.5, "and joining takes a few round trips"
    assert worker.staleness_p99 == 0


def test_training_learns_and_the_curve_says_when():
    result = simulate(scene(THREE, run={"total_steps": 600}, target_loss=0.05))
    losses = [point.loss for point in result.curve]
    assert losses[0] == 0.5
    assert losses[-1] < 0.02
    assert result.final_loss == losses[-1]
    assert result.time_to_loss_s == next(p.time_s for p in result.curve if p.loss <= 0.05)
    assert 20 < len(result.curve) <= 42


def test_work_and_staleness_follow_the_speeds():
    result = simulate(scene(THREE, run={"total_steps": 1320}, step_jitter=0.0))
    fast, middle, slow = result.workers
    assert fast.steps == pytest.approx(800, abs=16)
    assert middle.steps == pytest.approx(400, abs=12)
    assert slow.steps == pytest.approx(120, abs=8)
    assert fast.staleness_mean == pytest.approx(1.3 / 2.0, abs=0.15), "what the others send during its round"
    assert slow.staleness_mean == pytest.approx(3.0 / 0.3, abs=1.0)


def test_rounds_that_are_fitted_to_their_workers_last_alike_and_are_never_very_stale():
    """A hundredfold spread: with 8 steps for everybody the slowest is 800 rounds of the fastest behind."""
    spread = {"speeds": [10.0, 3.0, 1.0, 0.1]}
    run = {"total_steps": 8000, "staleness": "unbounded"}
    same, fitted = (simulate(scene(spread, run={**run, "local_steps": n})) for n in (8, "auto(steps=8)"))
    assert same.workers[-1].staleness_p99 > 10 * len(same.workers)
    assert fitted.total.staleness_p99 <= 2 * len(fitted.workers)
    assert fitted.total.acceptance >= 0.99
    rounds = [worker.steps / worker.accepted for worker in fitted.workers]
    assert rounds[0] > 5 * rounds[2] > 5 * rounds[3]
    assert rounds[3] < 2.0


def test_a_round_that_is_fitted_to_a_thin_line_hides_the_exchange():
    """A step takes 1 s; 40,000 float32 numbers take 16 s up and as long down."""
    thin = {"link": {**LINE, "up_mbps": 0.08, "down_mbps": 0.08}}
    run = {"total_steps": 1500}
    short, fitted = (
        simulate(scene(thin, run={**run, "local_steps": n}, task="synthetic(d=40000)", seconds=2000.0))
        for n in (4, "auto(steps=4)")
    )
    assert short.workers[0].utilisation < 0.25
    assert fitted.workers[0].utilisation > 0.9
    assert fitted.workers[0].steps / fitted.workers[0].accepted < 60, "and no longer than that takes"


def test_a_model_in_pieces_learns_as_well_and_sends_as_much_less_at_a_time():
    """Two thirds of its numbers are in one tensor, so half of the bytes of an update go."""
    whole, pieces = (
        simulate(scene(THREE, run={"total_steps": 2000, "fragments": n}, task="digits()", seconds=2000.0))
        for n in (1, 2)
    )
    assert pieces.total.failures == ()
    assert pieces.final_loss < 1.2 * whole.final_loss
    assert pieces.total.accepted == pytest.approx(whole.total.accepted, rel=0.02)
    assert pieces.total.sent_bytes < 0.6 * whole.total.sent_bytes
    assert pieces.total.received_bytes < 0.7 * whole.total.received_bytes


def test_synchronous_training_waits_for_the_slowest():
    run = {"total_steps": 240, "staleness": "fixed(bound=0)", "quorum": "all"}
    result = simulate(scene({"speeds": [2.0, 1.0, 0.5]}, run=run, step_jitter=0.0))
    assert result.total.staleness_p99 == 0
    assert result.total.acceptance == 1.0
    assert result.versions == 20
    assert [worker.utilisation for worker in result.workers] == pytest.approx([0.25, 0.5, 1.0], abs=0.05)


def test_a_thin_line_costs_utilisation_and_a_codec_gives_it_back():
    """A round computes 4 s; 40,000 float32 numbers take 6.4 s up."""
    thin = {"link": {**LINE, "up_mbps": 0.2}}
    big = {"task": "synthetic(d=40000)", "step_jitter": 0.0}
    dense = simulate(scene(thin, run={"total_steps": 80}, **big))
    assert dense.total.utilisation == pytest.approx(4.0 / 6.4, rel=0.05)
    assert dense.total.sent_bytes == pytest.approx(22 * 160_000, rel=0.02), "the first parameters, 20 updates, the last"
    sparse = simulate(scene(thin, run={"total_steps": 80, "compression": "int4"}, **big))
    assert sparse.total.utilisation > 0.99


def test_the_servers_line_is_shared():
    """Four workers at 1 Mbit/s each, a server at 1 Mbit/s: 4 x 160 kB take 5.1 s, and a round computes 4 s."""
    own = {"count": 4, "link": {**LINE, "up_mbps": 1.0}}
    narrow = {"server": {"up_mbps": 100.0, "down_mbps": 1.0, "latency_ms": 0.0}, "task": "synthetic(d=40000)"}
    result = simulate(scene(own, run={"total_steps": 320}, **narrow))
    assert result.total.utilisation == pytest.approx(4.0 / 5.12, rel=0.06)
    site = {**own, "trunk": {"up_mbps": 1.0, "down_mbps": 100.0}}
    result = simulate(scene(site, run={"total_steps": 320}, task="synthetic(d=40000)"))
    assert result.total.utilisation == pytest.approx(4.0 / 5.12, rel=0.06)


def test_who_leaves_says_goodbye_and_who_crashes_is_missed_later():
    scenario = scene(
        {"name": "stays"},
        {"name": "leaves", "leaves_s": 18.5},
        {"name": "crashes", "crashes_s": 18.5},
        {"name": "late", "joins_s": 30.0},
        run={"patience_s": 10.0},
        seconds=60.0,
        step_jitter=0.0,
    )
    simulation = Simulation(scenario)
    result = simulation.run()
    members = simulation.coordinator.run.members
    states = {member.name: member.state for member in members}
    assert states == {"stays": State.READY, "leaves": State.GONE, "crashes": State.GONE, "late": State.READY}
    seen = {member.name: member.seen_at for member in members}
    assert 19.0 < seen["leaves"] < 19.5
    assert 16.0 < seen["crashes"] <= 18.5
    assert result.worker("leaves").steps == 19, "the step under way is finished"
    assert result.worker("crashes").steps == 18
    assert result.worker("late").steps == 29
    assert members.named("leaves").steps == 19, "what it had goes before it does"
    assert members.named("crashes").steps == 16, "four rounds, and the last steps are lost"
    assert result.total.failures == ()


def test_under_churn_workers_return_and_what_was_accepted_is_counted_once():
    group = {"count": 4, "churn": {"up_s": 40.0, "down_s": 10.0}}
    simulation = Simulation(scene({"name": "steady"}, group, run={"total_steps": 1000, "patience_s": 5.0}))
    result = simulation.run()
    assert result.total.lives > 8
    assert result.total.failures == ()
    run = simulation.coordinator.run
    assert sum(member.steps for member in run.members) == run.steps_total >= 1000
    assert result.total.steps > run.steps_total, "crashes cost steps"
    assert result.final_loss < 0.05


def test_an_attacker_breaks_the_mean_and_not_a_robust_rule():
    hostile = {"name": "bad", "attack": "fast(sign_flip(k=10.0), speed=5.0)"}
    broken = simulate(scene({"count": 4}, hostile, run={"total_steps": 100}))
    assert not broken.final_loss < 1.0
    held = simulate(scene({"count": 4}, hostile, run={"total_steps": 600, "aggregation": "trimmed_mean(f=1)"}))
    assert held.final_loss < 0.05


def test_gradient_mode_is_simulated_too():
    result = simulate(scene({"count": 2}, run={"submit": "gradient", "local_steps": 1, "total_steps": 300}))
    assert result.final_loss < 0.05


class Line:
    """A user's own task: y = 2 x."""

    batch_size = 4

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Linear(1, 1)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def share(self, worker: int, workers: int) -> Any:
        return [(torch.tensor([float(x)]), torch.tensor([2.0 * x])) for x in (-1.0, -0.5, 0.5, 1.0)]

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return (model(x) - y).square().mean()

    def evaluate(self, model: nn.Module) -> float:
        return float((model.weight - 2.0).abs())


def test_a_task_of_the_users_own():
    assert simulate(scene({"count": 2}, run={"total_steps": 200}), task=Line()).final_loss < 0.1


def test_what_a_task_raises_is_raised():
    class Broken(Line):
        def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        simulate(scene({"count": 2}, run={"total_steps": 10}), task=Broken())


def test_a_bug_in_the_server_is_raised(monkeypatch, caplog):
    simulation = Simulation(scene({}, run={"total_steps": 10}))
    simulation.coordinator.run.stepper = None
    monkeypatch.setattr(simulation.coordinator, "_tick", lambda *_: 1 / 0)
    with caplog.at_level(logging.CRITICAL), pytest.raises(AsyncWANError, match="the server failed"):
        simulation.run()
