"""Robust rules in a run: what is refused at start, the default quorum, the wait for enough workers, one vote each."""

from __future__ import annotations

import logging

import pytest
import torch
from room import START, Room

from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.server import Coordinator
from lightning_async.telemetry import events
from lightning_async.wire import messages as m

NAMES = "abcdefghijk"
ONES = torch.ones(8)
ROBUST = {
    "median": 3,
    "trimmed_mean(f=2)": 5,
    "krum(f=2)": 7,
    "bulyan(f=2)": 11,
    "pipeline(nnm(f=2), trimmed_mean(f=2))": 5,
    "pipeline(bucketing(s=2), krum(f=1))": 9,
    "centered_clipping(tau=1.0)": 3,
}


@pytest.mark.parametrize(("rule", "least"), ROBUST.items())
def test_a_quorum_that_never_satisfies_the_rule_is_refused_with_the_smallest_that_does(rule: str, least: int) -> None:
    for quorum in {1, least - 1}:
        with pytest.raises(ConfigError, match=rf"quorum={quorum} can never .*smallest quorum that does is {least}"):
            Coordinator(RunConfig(aggregation=rule, quorum=quorum), "test")
    for quorum in ("all", None):
        with pytest.raises(ConfigError, match=rf"{least - 1} workers can never .*smallest quorum that does is {least}"):
            Coordinator(RunConfig(aggregation=rule, quorum=quorum, workers=least - 1), "test")
        Coordinator(RunConfig(aggregation=rule, quorum=quorum, workers=least), "test")
    assert Coordinator(RunConfig(aggregation=rule, quorum=least), "test").run.config.quorum == least


@pytest.mark.parametrize(
    ("rule", "workers", "quorum"),
    [
        ("mean", 11, 1),
        ("median", 1, 3),
        ("median", 4, 3),
        ("median", 11, 8),
        ("krum(f=2)", 1, 7),
        ("krum(f=2)", 11, 8),
        ("bulyan(f=2)", 11, 11),
        ("pipeline(clip_norm(c=1.0), mean)", 11, 1),
    ],
)
def test_a_robust_rule_is_buffered_unless_the_quorum_is_given(rule: str, workers: int, quorum: int) -> None:
    """Two thirds of the workers and one: with floor((n - 1) / 3) silent and as many hostile, honest ones are most."""
    config = Coordinator(RunConfig(aggregation=rule, workers=workers), "test").run.config
    assert config.quorum == quorum
    hostile = (workers - 1) // 3
    assert config.quorum > 2 * hostile or rule.startswith(("mean", "pipeline(clip"))
    assert Coordinator(RunConfig(aggregation=rule, workers=workers, quorum=11), "test").run.config.quorum == 11


@pytest.mark.parametrize("rule", ["monna(f=1, pivot=0)", "pipeline(nnm(f=1), monna(f=1, pivot=0))"])
def test_no_row_is_trusted_in_a_run(rule: str) -> None:
    """Row 0 would be whoever came first, and nobody comes sooner than an attacker."""
    with pytest.raises(ConfigError, match="no row is trusted; leave the pivot out"):
        Coordinator(RunConfig(aggregation=rule, workers=7), "test")


@pytest.mark.parametrize("rule", ["mean", "krum(f=1)", "multi_krum(f=1, m=2)", "mda(f=1)", "bulyan(f=1)"])
def test_who_comes_first_decides_nothing(rule: str) -> None:
    """Updates in all of which one other number is set are equally far from each other: ties all over."""
    found = []
    for names in ("abcdefg", "gfedcba", "dgbface"):
        room = Room(aggregation=rule, quorum=7).begin(*"abcdefg")
        for name in names:
            room.push(name, 0.1 * torch.eye(8)["abcdefg".index(name)])
        assert room.run.version == 1
        found.append(room.parameters)
    assert all(torch.equal(other, found[0]) for other in found[1:])


def test_while_workers_are_too_few_it_waits_and_says_so_once_per_change() -> None:
    room = Room(aggregation="krum(f=1)", workers=5, patience_s=1e6).begin("a", "b", "c")
    for name in "abc":
        for _ in range(4):
            assert room.push(name, ONES).accepted, "workers go on"
    room.wait(60.0, step_s=10.0)
    assert room.run.version == 0, "no step of three updates by a rule that needs five, and none by the mean"
    assert torch.equal(room.parameters, START)
    told = [(event.have, event.need, event.why) for event in room.events(events.Waiting)]
    assert told == [(3, 5, "krum(f=1) needs 5")]


def test_the_wait_is_seen_in_status_and_is_told_to_be_over() -> None:
    room = Room(aggregation="krum(f=1)", workers=5, patience_s=1e6).begin("a", "b", "c")
    room.wait(0.1)
    quorum = room.state()["quorum"]
    assert (quorum["have"], quorum["need"], quorum["why"]) == (3, 5, "krum(f=1) needs 5")
    assert "waits for workers: 3 of 5" in repr(room.coordinator)
    room.hello("d")
    room.wait(0.1)
    assert not room.events(events.Enough)
    room.hello("e")
    room.wait(1.0)
    assert [(event.have, event.need) for event in room.events(events.Waiting)] == [(3, 5), (4, 5)]
    assert [(event.have, event.need) for event in room.events(events.Enough)] == [(5, 5)]
    assert room.state()["quorum"] == {"waiting": [0], "need": 5, "have": 5, "why": ""}
    assert "waits" not in repr(room.coordinator)
    for name in "abcde":
        room.push(name, ONES)
    assert room.run.version == 1
    assert torch.allclose(room.parameters, START - 1)


def test_a_quorum_of_all_keeps_to_the_rules_condition_when_workers_leave() -> None:
    room = Room(aggregation="trimmed_mean(f=1)", quorum="all", workers=4).begin(*"abcd")
    for name in "ab":
        room.push(name, ONES)
    room.wait(1.0)
    for name in "cd":
        room.say(name, m.Leave())
    room.wait(10.0)
    assert room.run.version == 0, "two updates are everybody's, and too few for the rule"
    assert room.events(events.Waiting)[-1].why == "trimmed_mean(f=1) needs 3"


def test_a_quorum_that_the_user_chose_is_the_reason_where_it_is_more_than_the_rule_needs() -> None:
    room = Room(aggregation="median", quorum=4).begin("a", "b", "c")
    room.wait(0.1)
    assert room.events(events.Waiting)[-1].why == "the quorum is 4"


@pytest.mark.parametrize("rule", ["median", "trimmed_mean(f=1)", "krum(f=1)", "geometric_median"])
def test_a_ten_times_faster_attacker_has_one_vote(rule: str) -> None:
    """The same run with the attacker at everybody's speed gives the same parameters to rounding."""
    ended = []
    for times in (1, 10):
        torch.manual_seed(0)
        room = Room(aggregation=rule, quorum=5).begin(*"abcde")
        for _ in range(6):
            honest = ONES + 0.1 * torch.randn(4, 8)
            for name, vector in zip("abcd", honest, strict=True):
                for _ in range(times):
                    room.push("e", -10 * ONES, samples=1000)
                room.push(name, vector)
        assert room.run.version == 6
        ended.append(room.parameters.clone())
    assert torch.allclose(ended[0], ended[1], atol=1e-4)
    assert (START - ended[1]).min() > 3.0, "six steps of about one each, against the attacker's minus ten"


def test_a_fast_attacker_cannot_fill_a_quorum_by_itself() -> None:
    room = Room(aggregation="median", quorum=3).begin(*"abc")
    for _ in range(50):
        room.push("c", -ONES)
    room.push("a", ONES)
    assert room.run.version == 0
    room.push("b", ONES)
    assert room.run.version == 1
    assert torch.allclose(room.parameters, START - 1)


def test_the_service_logs_a_wait_for_people(caplog: pytest.LogCaptureFixture) -> None:
    from lightning_async.server import Service
    from lightning_async.server.actions import Emit
    from lightning_async.transport import listen

    service = Service(Coordinator(RunConfig(), "test"), listen("memory://wait"))
    try:
        with caplog.at_level(logging.WARNING):
            service._perform([Emit(events.Waiting(time_s=1.0, have=3, need=5, why="krum(f=1) needs 5"))])
            service._perform([Emit(events.Left(time_s=1.0, worker="a", why="bye"))])
    finally:
        service.close()
    assert "krum(f=1) needs 5" in caplog.text
    assert "bye" not in caplog.text


@pytest.mark.parametrize("tiny", [1e-6, 900.0])
def test_a_fast_worker_does_not_decide_which_norms_are_usual(tiny: float) -> None:
    room = Room(aggregation="median", quorum=3).begin(*"abc")
    for _ in range(3):
        for name in "abc":
            room.push(name, ONES)
    for _ in range(100):
        assert room.push("c", tiny * ONES).accepted
    assert room.push("a", 100 * ONES).accepted, "honest updates are not too long because of the attacker's short ones"
    assert room.push("c", 2000 * ONES).reason == "norm", "nor its own because of its long ones"


@pytest.mark.parametrize(
    ("rule", "codec", "advised"),
    [
        ("trimmed_mean(f=1)", "topk(density=0.1)", True),
        ("pipeline(clip_norm(c=1.0), median)", "randomk(density=0.1)", True),
        ("pipeline(nnm(f=1), median)", "randomk(density=0.1)", False),
        ("bulyan(f=1)", "chain(topk(density=0.1), int8())", True),
        ("multi_krum(f=1)", "topk(density=0.1)", False),
        ("geometric_median", "topk(density=0.1)", False),
        ("trimmed_mean(f=1)", "int8", False),
        ("mean", "topk(density=0.1)", False),
        ("kardam(f=1)", "topk(density=0.1)", False),
    ],
)
def test_coordinate_wise_rules_over_sparse_updates_are_advised_against_once(
    rule: str, codec: str, advised: bool
) -> None:
    room = Room(aggregation=rule, compression=codec)
    room.wait(1.0)
    texts = [event.text for event in room.events(events.Advised)]
    assert len(texts) == int(advised)
    assert not advised or "keeps a zero" in texts[0]
