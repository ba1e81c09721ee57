"""Every shipped scenario, shortened, from its start to its end: it runs, nobody fails, and what it is about happens."""

from __future__ import annotations

import logging

import pytest

from lightning_async.simulation import read_scenario, shipped, simulate

pytestmark = pytest.mark.slow
STEPS = {
    "workers_64": 2048,
    "workers_1000": 4000,
    "churn": 2400,
    "spread_100x": 12000,
    "liu_speeds": 1000,
    "byzantine": 4000,
}
TEXT = "text(layers=1, width=32, block=32, batch_size=4)"


@pytest.mark.parametrize("name", shipped())
def test_it_runs(name, caplog):
    changes = [f"run.total_steps={STEPS.get(name, 480)}", "evaluations=8"]
    if read_scenario(name).task == "text()":
        changes.append(f"task={TEXT}")
    scenario = read_scenario(name, changes)
    with caplog.at_level(logging.ERROR):
        result = simulate(scenario)
    assert result.ended.endswith("steps are in")
    assert result.total.failures == ()
    assert len(result.workers) == len(list(scenario.places()))
    if name == "workers_1000":  # a round for each: too few to learn from
        assert (result.total.accepted, result.versions) == (1000, 50)
    else:
        assert result.final_loss < 0.8 * result.curve[0].loss
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    if name == "churn":
        assert result.total.lives > len(result.workers)
    if name == "spread_100x":
        assert result.total.acceptance >= 0.99
        assert result.total.staleness_p99 <= 2 * len(result.workers)
    if name in ("wan_latency", "halos", "unreliable"):
        assert min(worker.utilisation for worker in result.workers) < 1.0
