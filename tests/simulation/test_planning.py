"""The planner's formula against the simulator, which has the real server, engines and codecs."""

from __future__ import annotations

import pytest

from lightning_async.errors import ConfigError
from lightning_async.links import Link
from lightning_async.simulation import scenario_of, simulate
from lightning_async.simulation.planning import CODECS, Demand, Machine, demand_in, predict, recommend

D = 40_000
FAST = {"up_mbps": 100.0, "down_mbps": 100.0, "latency_ms": 10.0}
CASES = {
    "a good line": ([1.0], FAST, {}, "none", 4),
    "a thin line up": ([1.0], {**FAST, "up_mbps": 0.2}, {}, "none", 4),
    "a thin line down": ([1.0], {**FAST, "down_mbps": 0.2}, {}, "none", 4),
    "the same with int4 up": ([1.0], {**FAST, "up_mbps": 0.2}, {}, "int4", 4),
    "far away": ([1.0], {**FAST, "latency_ms": 700.0}, {}, "none", 1),
    "unequal": ([2.0, 1.0, 0.3], {**FAST, "up_mbps": 1.0}, {}, "none", 4),
    "unequal and thin": ([2.0, 1.0, 0.3], {**FAST, "up_mbps": 0.3}, {}, "none", 4),
    "a thin server": ([1.0] * 4, {**FAST, "up_mbps": 1.0}, {"up_mbps": 100.0, "down_mbps": 0.8}, "none", 4),
}


def scene(speeds, link, server, run):
    return scenario_of(
        {
            "task": f"synthetic(d={D})",
            "step_s": 1.0,
            "workers": [{"speeds": speeds, "link": link}],
            "server": {"latency_ms": 0.0, **server},
            "run": {"follow": False, "total_steps": 40 * run["local_steps"] * len(speeds), **run},
        }
    )


@pytest.mark.parametrize("case", CASES)
def test_utilisation_is_what_the_simulator_finds(case):
    speeds, link, server, codec, steps = CASES[case]
    scenario = scene(speeds, link, server, {"local_steps": steps, "compression": codec})
    plan = predict(demand_in(scenario), codec, steps, quorum=1)
    found = simulate(scenario)
    told = {
        w.name: (round(u, 3), round(w.utilisation, 3)) for w, u in zip(found.workers, plan.utilisation, strict=True)
    }
    assert [w.utilisation for w in found.workers] == pytest.approx(list(plan.utilisation), abs=0.06), told
    if len(speeds) > 1:
        assert [w.staleness_mean for w in found.workers] == pytest.approx(list(plan.staleness), rel=0.2, abs=0.5)


def test_a_line_that_a_site_shares_is_planned_with():
    """Two beside the server, four behind 0.8 Mbit/s: 4 x 160 kB take 6.4 s there, and a round computes 4 s."""
    run = {"local_steps": 4, "follow": False, "total_steps": 600, "compression": "none"}
    site = {"name": "far", "count": 4, "link": FAST, "trunk": {"up_mbps": 0.8, "down_mbps": 100.0}}
    values = {"task": f"synthetic(d={D})", "step_s": 1.0, "workers": [{"name": "near", "count": 2, "link": FAST}, site]}
    scenario = scenario_of({**values, "run": run})
    plan = predict(demand_in(scenario), "none", 4, quorum=1)
    assert plan.utilisation == pytest.approx([1.0] * 2 + [4.0 / 6.4] * 4, abs=0.02)
    assert [w.utilisation for w in simulate(scenario).workers] == pytest.approx(list(plan.utilisation), abs=0.06)


@pytest.mark.parametrize("up_mbps", [100.0, 1.0, 0.1])
def test_what_is_recommended_reaches_its_target(up_mbps):
    link = {**FAST, "up_mbps": up_mbps}
    plan, plans = recommend(demand_in(scene([1.0, 0.5], link, {}, {"local_steps": 1})))
    assert [p.compression for p in plans] == list(CODECS)
    run = {"local_steps": plan.local_steps, "compression": plan.compression, "quorum": plan.quorum}
    found = simulate(scene([1.0, 0.5], link, {}, run))
    assert min(worker.utilisation for worker in found.workers) > 0.92, plan


def test_thinner_lines_take_longer_rounds_and_then_stronger_codecs():
    def plan(up_mbps: float):
        machine = Machine(step_s=0.25, link=Link(up_mbps=up_mbps, down_mbps=5 * up_mbps, latency_ms=20.0))
        return recommend(Demand(parameters=10**8, machines=(machine,) * 4, server=Link(up_mbps=1e6, down_mbps=1e6)))[0]

    plans = [plan(up_mbps) for up_mbps in (10_000.0, 1000.0, 10.0)]
    assert plans[0].compression == "none"
    assert plans[-1].compression == "topk"
    assert all(p.least >= 0.95 for p in plans)
    stronger = [CODECS.index(p.compression) for p in plans]
    assert stronger == sorted(stronger)


def test_the_quorum_keeps_staleness_within_twice_the_number_of_workers():
    machines = tuple(Machine(step_s=0.25 / speed, link=Link()) for speed in (10.0, 5.0, 1.0, 0.1))
    demand = Demand(parameters=1000, machines=machines, server=Link())
    assert max(predict(demand, "none", 4, quorum=1).staleness) > 100
    plan = predict(demand, "none", 4)
    assert plan.quorum == 4, "all there are"
    assert predict(Demand(parameters=1000, machines=machines[:2], server=Link()), "none", 4).quorum == 1


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ConfigError, match="expected a utilisation between 0 and 1"):
        recommend(Demand(parameters=1, machines=(Machine(step_s=1.0, link=Link()),), server=Link()), target=1.5)
    with pytest.raises(ConfigError, match="expected parameters >= 1"):
        Demand(parameters=0, machines=(Machine(step_s=1.0, link=Link()),), server=Link())
