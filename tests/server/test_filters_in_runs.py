"""Kardam and Zeno++ in a run: what is refused at start, what passes, what is dropped, and what survives a restart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from room import LAYOUT, START, Room
from torch import Tensor

from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.server import Coordinator, memory
from lightning_async.server.private import Private
from lightning_async.telemetry import events
from lightning_async.wire import messages as m

ONES = torch.ones(8)
NAMES = "abcd"


def trusting(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything should fall: the trusted update is 0.1 everywhere."""
    assert set(tensors) == {"w", "b", "norm.mean", "norm.var"}
    return {name: torch.full_like(tensors[name], 0.1) for name in ("w", "b")}


def zeno_room(validation: Any = trusting, **config: Any) -> Room:
    config = {"aggregation": "zeno(rho=0.2)"} | config
    return Room(Private(secret=1, validation=validation), **config).begin(*NAMES)


def test_zeno_without_a_validation_function_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r'zeno\(rho=0.2, .*got no validation function; give validation="module:'):
        Coordinator(RunConfig(aggregation="zeno(rho=0.2)"), "test")


@pytest.mark.parametrize("quorum", [2, "all"])
def test_a_filter_and_a_quorum_are_refused_together(quorum: Any) -> None:
    for rule in ("zeno(rho=0.2)", "kardam(f=1)"):
        with pytest.raises(ConfigError, match="judges every update by itself; leave quorum out"):
            Coordinator(RunConfig(aggregation=rule, quorum=quorum), "test", Private(validation=trusting))


def test_workers_that_can_never_satisfy_kardam_are_refused_at_start() -> None:
    with pytest.raises(ConfigError, match=r"3 workers can never .* needs n > 3f = 3: expect 4 workers or more"):
        Coordinator(RunConfig(aggregation="kardam(f=1)", workers=3), "test")
    for workers in (1, 4):
        run = Coordinator(RunConfig(aggregation="kardam(f=1)", workers=workers), "test").run
        assert (run.config.quorum, run.config.aggregation) == (1, "kardam(f=1, decay=0.1)")


@pytest.mark.parametrize("shape", ["missing", "shape", "nan", "raises"])
def test_a_validation_function_that_cannot_work_ends_the_start_with_its_error(shape: str) -> None:
    def broken(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        w = {"shape": torch.zeros(3), "nan": torch.full((2, 3), math.nan)}.get(shape, torch.zeros(2, 3))
        if shape == "raises":
            raise RuntimeError("no such file")
        return {"w": w} if shape == "missing" else {"w": w, "b": torch.zeros(2)}

    room = Room(Private(validation=broken), aggregation="zeno(rho=0.2)")
    room.hello("a", rank=0)
    refused = room.say("a", m.Init(digest=LAYOUT.digest), (START.numpy().tobytes(), bytes(16)))
    assert isinstance(refused, m.Refused)
    assert "the validation function" in refused.detail


def test_zeno_lets_every_update_that_points_the_trusted_way_make_a_step_of_the_trusted_length() -> None:
    room = zeno_room()
    assert room.push("a", 50 * ONES).accepted
    assert room.run.version == 1
    assert torch.allclose(room.parameters, START - 0.1, atol=1e-6)


def test_zeno_drops_what_points_elsewhere_and_says_so() -> None:
    room = zeno_room()
    for _ in range(4):
        assert room.push("d", -50 * ONES).accepted, "accepted, and not used: as any robust rule does"
    assert room.run.version == 0
    assert torch.equal(room.parameters, START)
    told = room.events(events.Dropped)
    assert [(event.worker, event.seq) for event in told] == [("d", 1), ("d", 2), ("d", 3), ("d", 4)]
    assert "cosine -1.00" in told[0].why
    row = room.state()["workers"]["d"]["reputation"]
    assert row["used"] == 0.0
    assert row["score"] < 0.5
    room.push("a", ONES)
    member = room.run.members.named("d")
    assert member is not None
    assert member.included == 4, "the worker learns that these are settled"


def test_zeno_asks_its_owner_as_often_as_it_says() -> None:
    asked: list[float] = []

    def counting(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        asked.append(float(tensors["w"][0, 0]))
        tensors["w"].add_(100.0)  # its own copy
        return trusting(tensors)

    room = zeno_room(counting, aggregation="zeno(rho=0.2, every=3)")
    for step in range(7):
        room.push(NAMES[step % 4], ONES)
    assert len(asked) == 3, "at versions 0, 3 and 6"
    assert asked == pytest.approx([0.0, -0.3, -0.6], abs=1e-5)


def test_a_validation_function_that_fails_for_a_while_loses_no_accepted_update() -> None:
    asked: list[bool] = []
    broken = False

    def failing(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        asked.append(broken)
        if broken:
            raise RuntimeError("the disk with the validation set is away")
        return trusting(tensors)

    room = zeno_room(failing)
    assert room.push("d", ONES).accepted
    broken = True
    receipts = [room.push(name, ONES, steps=3) for name in "aab"]
    assert all(receipt.accepted for receipt in receipts)
    room.wait(5.0)
    assert asked == [False, True, True, True], "once for each update, and not at every tick"
    assert room.run.version == 1
    assert [(slot.worker, slot.steps) for slot in room.run.stepper.waiting[0]] == [("a", 6), ("b", 3)]  # type: ignore[union-attr]
    assert ["the disk with the validation set is away" in event.why for event in room.events(events.Waiting)] == [True]
    broken = False
    assert room.push("c", ONES).accepted
    assert room.run.version == 4, "all that waited has been judged"
    assert len(room.events(events.Enough)) == 1
    assert [event.workers for event in room.events(events.Stepped)] == [("d",), ("a",), ("b",), ("c",)]


def test_who_zeno_drops_goes_into_quarantine() -> None:
    room = zeno_room(quarantine_below=0.3)
    for _ in range(12):
        for name in NAMES:
            room.push(name, -ONES if name == "d" else ONES)
    assert [event.worker for event in room.events(events.Quarantined)] == ["d"]


def kardam_room(**config: Any) -> Room:
    return Room(Private(secret=1), **({"aggregation": "kardam(f=1)"} | config)).begin(*NAMES)


def gradient(room: Room, name: str, seed: int) -> Tensor:
    """0.1 x the parameters, with a little noise: a slope of 0.1. "d" is hostile: its is -3."""
    noise = torch.randn(8, generator=torch.Generator().manual_seed(seed))
    return (-3.0 if name == "d" else 0.1) * room.parameters + 1e-4 * noise


def drive(room: Room, rounds: int) -> None:
    for step in range(rounds):
        for i, name in enumerate(NAMES):
            room.push(name, gradient(room, name, 10 * step + i))


def test_kardam_waits_for_enough_workers_and_says_so() -> None:
    room = Room(Private(secret=1), aggregation="kardam(f=1)", patience_s=1e6).begin("a", "b", "c")
    for step in range(4):
        for name in "abc":
            room.push(name, gradient(room, name, step))
    room.wait(1.0)
    assert room.run.version == 0
    assert [(event.have, event.need, event.why) for event in room.events(events.Waiting)] == [
        (3, 4, "kardam(f=1, decay=0.1) needs 4")
    ]
    room.hello("d")
    room.wait(1.0)
    assert room.run.version == 1, "the first step is trimmed_mean(f=1) of those that wait"


def test_kardam_begins_with_the_trimmed_mean_and_then_makes_a_step_of_each_that_passes() -> None:
    room = kardam_room()
    drive(room, 30)
    steps = [event.workers for event in room.events(events.Stepped)]
    assert len(steps[0]) == 3, "2f + 1 workers, before anybody has a slope"
    alone = [workers[0] for workers in steps if len(workers) == 1]
    assert len(alone) > 40
    assert "d" not in alone
    assert {event.worker for event in room.events(events.Dropped) if "steepest" in event.why} >= {"d"}
    assert room.parameters.norm() < 0.5 * START.norm(), "it went down, though d pushed up ten times as hard"


def test_a_filter_goes_on_after_a_restart_as_if_nothing_had_happened() -> None:
    rooms = [kardam_room(), zeno_room(aggregation="zeno(rho=0.2, every=4)")]
    for room in rooms:
        drive(room, 5)
        record, tensors = memory.dump(room.run)
        again = Room(room.run.rules.private, **vars(room.run.config))
        again.coordinator = Coordinator.restored(
            room.run.config, json.loads(json.dumps(record)), tensors, room.run.rules.private
        )
        again.run = again.coordinator.run
        for name in NAMES:
            again.hello(name)
        drive(again, 5)
        drive(room, 5)
        assert room.run.version == again.run.version > 5
        assert torch.equal(room.parameters, again.parameters)


def test_gradients_are_filtered_too_also_of_some_tensors() -> None:
    optimizers = [{"class": "SGD", "groups": [{"names": ["w", "b"], "hyper": {"lr": 1.0}}]}]
    room = Room(
        Private(validation=trusting), aggregation="zeno(rho=0.2)", submit="gradient", local_steps=1
    ).begin(*NAMES, optimizers=optimizers)  # fmt: skip
    hyper = [{"lr": [1.0, 1.0]}]
    room.push("a", 7 * torch.ones(2), present=[1], hyper=hyper)
    assert room.run.version == 1
    expected = START.clone()
    expected[6:] -= 0.1
    assert torch.allclose(room.parameters, expected, atol=1e-6), "the length of the trusted gradient of b alone"
    room.push("a", -7 * torch.ones(2), present=[1], hyper=hyper)
    assert room.run.version == 1
    room.push("b", ONES, present=[0, 1], hyper=hyper)
    assert room.run.version == 2


def test_what_the_server_shuffles_by_is_not_told_to_workers() -> None:
    secret = 0x3ACE_51DE_7E57
    room = Room(Private(secret=secret, token="the owner's"), aggregation="pipeline(bucketing(s=2), median)", quorum=6)
    welcome = room.hello("a", rank=0)
    assert welcome.config["aggregation"] == "pipeline(bucketing(s=2), median())"
    for told in (repr(welcome), repr(room.state()), repr(room.run.rules)):
        assert str(secret) not in told
        assert "the owner's" not in told
    room = Room(Private(secret=secret), aggregation="pipeline(bucketing(s=2), median)", quorum=6).begin(*"abcdef")
    for name in "abcdef":
        room.push(name, ONES)
    assert int(memory.dump(room.run)[1]["aggregator/0/seed.0"]) == secret + 1
