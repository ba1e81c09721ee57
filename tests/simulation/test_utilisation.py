"""How much of their time workers compute on `wan_typical`: most of it once updates are small, less than that without.

The line is a hundredth of the preset for a model that is a hundredth of 5 million parameters: the same times.
"""

from __future__ import annotations

import pytest

from lightning_async.simulation import Result, scenario_of, simulate

LINE = "wan_typical(up_mbps=0.2, down_mbps=1.0)"


def utilised(compression: str | None) -> Result:
    run = {"compression": compression, "total_steps": 640}
    values = {"task": "synthetic(d=50000)", "step_s": 0.25, "run": run, "workers": [{"count": 4, "link": LINE}]}
    return simulate(scenario_of(values))


@pytest.mark.parametrize("compression", [None, "topk", "auto"])
def test_every_worker_computes_nearly_all_of_the_time_when_updates_are_small(compression: str) -> None:
    result = utilised(compression)
    assert result.total.acceptance == 1.0
    assert min(worker.utilisation for worker in result.workers) >= 0.95


def test_exact_updates_are_waited_for() -> None:
    assert max(worker.utilisation for worker in utilised("none").workers) < 0.7
