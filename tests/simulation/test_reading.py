"""Scenarios as YAML: every shipped one is whole, and what is wrong is said with its place."""

from __future__ import annotations

import pytest

from lightning_async.errors import ConfigError
from lightning_async.links import PRESETS, Brownout, Link, link
from lightning_async.simulation import read_scenario, scenario_of, shipped

SMALL = {"seconds": 10.0, "workers": [{"count": 2}]}
FAMILY = ["baseline", "wan_bandwidth", "wan_latency", "heterogeneous", "unreliable", "churn", "byzantine", "extreme"]


def test_what_is_promised_is_shipped():
    assert {*FAMILY, "halos", "leases", "liu_speeds", "spread_100x", "workers_64", "workers_1000"} == set(shipped())


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_scenario_is_whole(name):
    scenario = read_scenario(name)
    assert scenario.name == name
    assert scenario.about.endswith(".")
    assert len(list(scenario.places())) >= 2


def test_values_become_objects():
    line = {"up_mbps": 5, "brownout": {"every_s": 60, "lasts_s": 6}}
    scenario = scenario_of({**SMALL, "workers": [{"name": "a", "speeds": [2, 1.0], "link": line}]})
    (group,) = scenario.workers
    assert group.speeds == (2.0, 1.0)
    assert group.link == Link(up_mbps=5.0, brownout=Brownout(every_s=60.0, lasts_s=6.0))
    assert [place.name for place in scenario.places()] == ["a-0", "a-1"]


def test_a_line_may_go_by_its_name():
    scenario = scenario_of({**SMALL, "workers": [{"link": "cellular(loss=0.02)"}], "server": "datacenter"})
    assert scenario.workers[0].link == link("cellular(loss=0.02)")
    assert scenario.server == PRESETS["datacenter"]


def test_speeds_may_fall_in_equal_ratios():
    scenario = scenario_of({**SMALL, "workers": [{"count": 3, "speed": 10, "slowest": 0.1}]})
    assert [place.speed for place in scenario.places()] == pytest.approx([10.0, 1.0, 0.1])


def test_a_fast_attack_makes_its_worker_fast():
    scenario = scenario_of({**SMALL, "workers": [{"attack": "fast(zero(), speed=10.0)"}, {"name": "b"}]})
    assert [place.speed for place in scenario.places()] == [10.0, 1.0]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({**SMALL, "sede": 1}, "got the key sede, expected some of: about, "),
        (
            {**SMALL, "workers": [{"link": {"latncy_ms": 1}}]},
            "workers.0.link: got the key latncy_ms, expected some of:",
        ),
        ({**SMALL, "workers": [{"link": {"up_mbps": "fast"}}]}, "workers.0.link.up_mbps: got 'fast', expected float"),
        ({**SMALL, "workers": [{"link": "pigeon"}]}, "workers.0.link: unknown link 'pigeon'"),
        ({**SMALL, "workers": [{"link": "lan(cuts=cuts(every_s=9))"}]}, "expected a line without cuts"),
        ({**SMALL, "workers": [{"count": 0}]}, "workers.0: got Group"),
        ({**SMALL, "workers": [{"count": True}]}, "workers.0.count: got True, expected int"),
        ({**SMALL, "workers": {"count": 2}}, "workers: got {'count': 2}, expected a list"),
        ({**SMALL, "workers": [{"attack": "nonsense()"}]}, "workers.0: unknown attack 'nonsense'"),
        ({**SMALL, "workers": []}, "expected at least one group"),
        ({**SMALL, "workers": [{}, {}]}, "expected a name of its own for every group"),
        ({**SMALL, "run": {"quorun": 2}}, "run: unknown configuration quorun"),
        ({**SMALL, "run": 7}, "run: got 7, expected a mapping"),
        ({**SMALL, "step_jitter": 1.0}, "expected step_s > 0 and 0 <= step_jitter < 1"),
        ({"workers": [{}]}, "expected run.total_steps, passes, or seconds > 0"),
        ([1], "expected a mapping such as"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(values, told):
    with pytest.raises(ConfigError) as error:
        scenario_of(values)
    assert told in str(error.value)


def test_changes_reach_every_place():
    changes = ["seed=7", "run.local_steps=3", "workers.0.link.latency_ms=99", "workers.*.count=3", "task=digits()"]
    scenario = read_scenario("baseline", changes)
    assert (scenario.seed, scenario.run.local_steps, scenario.task) == (7, 3, "digits()")
    assert scenario.workers[0].link.latency_ms == 99.0
    assert all(group.count == 3 for group in scenario.workers)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("seed", "expected key=value"),
        ("workers.9.count=1", "workers.9.count: got '9', expected a number below 1"),
        ("step_s.x=1", "step_s.x: got a key below 0.25"),
        ("run.x=1", "unknown configuration x"),
    ],
)
def test_a_wrong_change_is_refused(change, told):
    with pytest.raises(ConfigError) as error:
        read_scenario("baseline", [change])
    assert told in str(error.value)


def test_a_name_that_nobody_knows_lists_those_that_are(tmp_path):
    with pytest.raises(ConfigError, match="got 'basline', expected a YAML file or one of: baseline, byzantine"):
        read_scenario("basline")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_scenario(tmp_path / "bad.yaml")
