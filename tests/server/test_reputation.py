"""Reputations: what they see, who is excluded, and how it comes back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from room import START, Room

from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.server import Coordinator, ServerThread, memory
from lightning_async.server.reputation import LEAST_ROUNDS, TERM, Reputation, Sight, review, robust_z, term
from lightning_async.telemetry import events
from lightning_async.wire.messages import Reason

ONES = torch.ones(8)
NAMES = "abcdefg"


def honest(seed: int) -> torch.Tensor:
    return ONES + 0.3 * torch.randn(8, generator=torch.Generator().manual_seed(seed))


def rounds(room: Room, count: int, bad: torch.Tensor | None = None, names: str = NAMES) -> None:
    """Everybody submits; the last one submits `bad`."""
    for step in range(count):
        for i, name in enumerate(names):
            hostile = bad is not None and name == NAMES[-1]
            room.push(name, bad if hostile and bad is not None else honest(100 * step + i))


def scores(room: Room) -> dict[str, float]:
    return {name: worker["reputation"]["score"] for name, worker in room.state()["workers"].items()}


def test_one_step_is_seen_by_influence_distance_and_direction() -> None:
    rows = [honest(seed) for seed in range(6)] + [-10 * ONES]
    seen = review(rows, torch.stack(rows[:6]).mean(0), [1.0] * 6 + [0.0])
    for sight in seen.sights[:6]:
        assert abs(sight.distance_z) < 6
        assert sight.cosine > 0.9
        assert sight.verdict == 1.0
    attacker = seen.sights[6]
    assert attacker.distance_z > 10
    assert attacker.cosine == pytest.approx(-1.0, abs=0.05)
    assert attacker.verdict == 0.0
    assert review(rows[:2], rows[0], [1.0, 1.0]).sights == (), "two have no majority"


def test_an_unused_update_among_the_others_is_no_offence() -> None:
    """Krum uses one update of n."""
    assert Sight(influence=0.0, distance_z=0.5, cosine=0.4).verdict == 1.0
    assert Sight(influence=1.0, distance_z=30.0, cosine=0.4).verdict == 1.0
    assert Sight(influence=0.0, distance_z=30.0, cosine=0.4).verdict == pytest.approx(0.01)
    assert Sight(influence=1.0, distance_z=0.0, cosine=-0.6).verdict == 0.0


@given(st.lists(st.floats(0, math.inf), min_size=3, max_size=20))
def test_the_z_score_of_any_distances_is_finite(values: list[float]) -> None:
    found = robust_z(values)
    assert all(math.isfinite(z) and z <= 1000 for z in found)


def test_rounding_between_equal_updates_is_no_distance() -> None:
    for seed in range(20):
        row = 100 * torch.randn(5000, generator=torch.Generator().manual_seed(seed))
        rows = [row, row.clone(), row.clone(), row * (1 + 1e-6), row * (1 - 1e-6)]
        assert all(sight.verdict > 0.9 for sight in review(rows, row.clone(), [1.0] + [0.0] * 4).sights)


def test_values_at_the_edge_of_float32_are_far_and_break_nothing() -> None:
    rows = [honest(seed) for seed in range(6)] + [ONES * 3e38]
    seen = review(rows, ONES, [1.0] * 6 + [0.0])
    assert seen.sights[6].distance_z == 1000
    assert seen.sights[6].cosine == 0.0
    assert seen.sights[6].verdict < 0.01


@pytest.mark.parametrize("rule", ["median", "trimmed_mean(f=1)", "krum(f=1)", "geometric_median", "mda(f=1)"])
def test_the_score_tells_hostile_from_honest_under_every_kind_of_rule(rule: str) -> None:
    room = Room(aggregation=rule, quorum=7).begin(*NAMES)
    rounds(room, 15, bad=-10 * ONES)
    found = scores(room)
    assert found.pop("g") < 0.1
    assert min(found.values()) > 0.8
    row = room.state()["workers"]["g"]["reputation"]
    assert row["rounds"] == 15
    assert row["cosine"] < -0.9
    assert row["distance_z"] > 10
    judged = room.events(events.Judged)[-1]
    assert judged.workers == tuple(NAMES)
    assert dict(zip(judged.workers, judged.score, strict=True))["g"] < 0.1
    json.dumps(room.state())


def test_the_mean_judges_nobody_and_cannot_quarantine() -> None:
    room = Room(quorum=7).begin(*NAMES)
    rounds(room, 12, bad=-10 * ONES)
    assert not room.events(events.Judged)
    assert room.state()["workers"]["g"]["reputation"]["rounds"] == 0
    with pytest.raises(ConfigError, match="choose a robust rule"):
        Coordinator(RunConfig(quarantine_below=0.3), "test")
    for wrong in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigError, match="quarantine_below"):
            RunConfig(quarantine_below=wrong)


def quarantined(**config: object) -> Room:
    room = Room(**{"aggregation": "trimmed_mean(f=1)", "quorum": 6, "quarantine_below": 0.3} | config).begin(*NAMES)
    rounds(room, LEAST_ROUNDS - 1, bad=-10 * ONES)
    assert not room.events(events.Quarantined), "not before it has been seen for long enough"
    rounds(room, 3, bad=-10 * ONES)
    return room


def test_who_falls_below_the_threshold_is_excluded_with_a_reason_on_its_receipts() -> None:
    room = quarantined()
    (event,) = room.events(events.Quarantined)
    assert event.worker == "g"
    assert event.score < 0.3
    version = room.run.version
    receipt = room.push("g", honest(1))
    assert (receipt.accepted, receipt.reason) == (False, Reason.QUARANTINED.value)
    assert f"until version {event.until}" in receipt.detail
    state = room.state()["workers"]["g"]
    assert state["refused"]["quarantined"] >= 1
    assert state["quarantined_until"] == event.until
    assert room.pull("g") is not None, "it may read"
    rounds(room, 1, names=NAMES[:6])
    assert room.run.version == version + 1, "the others go on without it"
    assert room.events(events.Stepped)[-1].workers.count("g") == 0


def test_a_quorum_of_all_does_not_wait_for_who_is_excluded() -> None:
    room = quarantined(quorum="all", workers=7)
    version = room.run.version
    rounds(room, 1, names=NAMES[:6])
    assert room.run.version == version + 1


def test_nobody_is_excluded_when_too_few_would_remain() -> None:
    room = Room(aggregation="trimmed_mean(f=1)", quorum=7, quarantine_below=0.3).begin(*NAMES)
    rounds(room, 20, bad=-10 * ONES)
    assert scores(room)["g"] < 0.1
    assert not room.events(events.Quarantined)
    assert room.run.version == 20


def test_the_owner_pardons() -> None:
    room = quarantined()
    with pytest.raises(ConfigError, match="in quarantine are: g"):
        room.coordinator.pardon("a", room.now)
    room.coordinator.pardon("g", room.now)
    assert room.push("g", honest(1)).accepted
    assert scores(room)["g"] == 1.0
    assert room.state()["workers"]["g"]["quarantined_until"] is None
    with pytest.raises(ConfigError, match="in quarantine are: nobody"):
        room.coordinator.pardon("g", room.now)


def test_a_pardon_from_another_thread() -> None:
    with ServerThread(RunConfig()) as server, pytest.raises(ConfigError, match="in quarantine are: nobody"):
        server.pardon("somebody")


def test_a_quarantine_ends_by_itself_and_the_next_is_twice_as_long() -> None:
    room = quarantined()
    (event,) = room.events(events.Quarantined)
    rounds(room, event.until - room.run.version, names=NAMES[:6])
    assert [event.worker for event in room.events(events.Released)] == ["g"]
    rounds(room, LEAST_ROUNDS + 2, bad=-10 * ONES)
    _, second = room.events(events.Quarantined)
    assert event.until - term(0) < second.until - term(1)
    assert (term(0), term(1), term(2)) == (TERM, 2 * TERM, 4 * TERM)
    rounds(room, 5, names=NAMES[:6])
    assert not room.push("g", honest(1)).accepted


def test_reputation_and_quarantine_survive_a_restart() -> None:
    room = quarantined()
    record, tensors = memory.dump(room.run)
    again = Coordinator.restored(room.run.config, json.loads(json.dumps(record)), tensors)
    for old in room.run.members:
        new = again.run.members.named(old.name)
        assert new is not None
        assert (new.reputation, new.barred, new.barred_until) == (old.reputation, old.barred, old.barred_until)
    assert Reputation.read(new.reputation.as_dict()) == new.reputation


def test_a_server_that_goes_on_without_quarantine_frees_everybody() -> None:
    room = quarantined()
    record, tensors = memory.dump(room.run)
    again = Coordinator.restored(replace(room.run.config, quarantine_below=None, quorum=5), record, tensors)
    assert not any(member.quarantined for member in again.run.members)


@pytest.mark.parametrize("scale", [1.0, 0.01, 50.0])
def test_copies_are_flagged_and_do_not_harm_the_one_who_was_copied(scale: float) -> None:
    room = Room(aggregation="median", quorum=7, quarantine_below=0.3).begin(*NAMES)
    for step in range(12):
        rows = [honest(100 * step + i) for i in range(6)]
        for name, row in zip(NAMES, [*rows, scale * rows[0]], strict=True):
            room.push(name, row)
    told = {(event.worker, event.like) for event in room.events(events.Copied)}
    assert told == {("a", "g"), ("g", "a")}
    state = room.state()["workers"]
    assert [state[name]["reputation"]["copies"] for name in NAMES] == [12, 0, 0, 0, 0, 0, 12]
    assert state["a"]["reputation"]["score"] > 0.8
    assert all(event.worker != "a" for event in room.events(events.Quarantined))


def test_a_copy_with_two_percent_of_noise_is_not_taken_for_one() -> None:
    big = [torch.randn(10_000, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    near = big[0] + 0.05 * big[1]
    assert review([*big, near], big[2], [1.0] * 5).copies == ()
    near = big[0] + 0.005 * big[1]
    ((i, j, cosine),) = review([*big, near], big[2], [1.0] * 5).copies
    assert (i, j) == (0, 4)
    assert cosine == pytest.approx(float(torch.cosine_similarity(big[0], near, dim=0)), abs=1e-6)


def test_hostile_updates_move_nothing_under_a_robust_rule_meanwhile() -> None:
    room = quarantined()
    steps = room.run.version
    assert torch.allclose((START - room.parameters) / steps, ONES, atol=0.25)
