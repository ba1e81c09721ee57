"""Every refusal of an update: reason on the receipt, counter in status, event, and no trace in the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from room import BUFFERS, LAYOUT, START, Room, raw

from lightning_async.outer import Update
from lightning_async.server import exchange, memory
from lightning_async.server.actions import Limit
from lightning_async.server.reputation import Review
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.messages import Reason

ONES = torch.ones(8)
WORKERS = "abcdefg"
SETTING: dict[str, Any] = {
    "aggregation": "trimmed_mean(f=1)",
    "quorum": 7,
    "quarantine_below": 0.3,
    "staleness": "fixed(bound=3)",
    "compression": "int8",
    "download_compression": "none",
}


def bad(room: Room, frames: tuple[Any, ...], **changes: Any) -> Any:
    member = room.run.members.named("g")
    assert member is not None
    values = {"seq": member.last_seq + 1, "base": room.run.version, "digest": LAYOUT.digest, **changes}
    return room.say("g", m.Push(**values), frames)


GOOD = (b"", b"")
REFUSALS: dict[Reason, Callable[[Room], Any]] = {
    Reason.LAYOUT: lambda room: bad(room, GOOD, digest="another"),
    Reason.FUTURE: lambda room: bad(room, GOOD, base=room.run.version + 1),
    Reason.STALE: lambda room: bad(room, GOOD, base=room.run.version - 4),
    Reason.SEQUENCE: lambda room: bad(room, GOOD, seq=0),
    Reason.PROTOCOL: lambda room: bad(room, GOOD, steps=0),
    Reason.LIMIT: lambda room: bad(room, GOOD, steps=20 * 16 + 1),
    Reason.CONFIG: lambda room: bad(room, GOOD, present=[0]),
    Reason.LENGTH: lambda room: bad(room, (b"\0" * 10_000, b"")),
    Reason.PAYLOAD: lambda room: bad(room, (b"\0" * 20, b"")),
    Reason.NOT_FINITE: lambda room: room.push("g", ONES, buffers=BUFFERS * float("nan")),
    Reason.NORM: lambda room: room.push("g", 1e6 * ONES),
}


def honest(room: Room, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name in WORKERS:
        room.push(name, ONES + 0.2 * torch.randn(8, generator=generator))


def running() -> Room:
    room = Room(**SETTING).begin(*WORKERS)
    for seed in range(5):
        honest(room, seed)
    assert room.run.version == 5
    return room


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refusal_has_a_reason_a_counter_and_an_event_and_leaves_no_trace(reason: Reason) -> None:
    room, spared = running(), running()
    receipt = REFUSALS[reason](room)
    assert (receipt.accepted, receipt.reason) == (False, reason.value)
    assert receipt.detail
    assert room.state()["workers"]["g"]["refused"] == {reason.value: 1}
    assert [(event.worker, event.reason) for event in room.events(events.Refused)] == [("g", reason.value)]
    for seed in range(5, 10):
        honest(room, seed)
        honest(spared, seed)
    assert room.run.version == spared.run.version == 10
    (_, tensors), (_, clean) = memory.dump(room.run), memory.dump(spared.run)
    assert tensors.keys() == clean.keys()
    assert all(torch.equal(tensors[name], clean[name]) for name in clean)


def test_an_update_whose_length_is_not_finite_is_refused_from_the_first_one_on() -> None:
    """Each number is, but two of them make an infinite average, and sums of their squares do at much less."""
    room = Room(quorum=2).begin("a", "b")
    for size in (3e38, 1e19, 1e16):
        receipt = room.push("a", size * ONES)
        assert (receipt.accepted, receipt.reason) == (False, Reason.NOT_FINITE.value)
    for name in "ab":
        assert room.push(name, ONES).accepted
    assert bool(torch.isfinite(room.parameters).all())


@pytest.mark.parametrize("submit", ["update", "gradient"])
def test_accepted_updates_along_which_no_step_can_be_made_are_dropped_and_that_is_said(
    submit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"optimizers": [{"class": "SGD", "groups": [{"names": ["w", "b"], "hyper": {"lr": 1.0}}]}]}
    changes = {"present": [0, 1], "hyper": [{"lr": [1.0, 1.0]}]} if submit == "gradient" else {}
    room = Room(quorum=2, submit=submit, local_steps=1).begin("a", "b", **(options if changes else {}))
    assert room.run.stepper is not None
    with monkeypatch.context() as patch:
        patch.setattr(room.run.stepper, "_aggregate", lambda *_: (Update(math.inf * ONES), Review()))
        for name in "ab":
            assert room.push(name, ONES, **changes).accepted
    assert room.run.version == 0
    assert torch.equal(room.parameters, START)
    assert [event.worker for event in room.events(events.Dropped)] == ["a", "b"]
    assert "NaN or infinity" in room.events(events.Dropped)[0].why
    for name in "ab":
        assert room.push(name, ONES, **changes).accepted
    assert room.run.version == 1
    assert torch.equal(room.parameters, START - 1)
    member = room.run.members.named("a")
    assert member is not None
    assert member.included == 2


def test_an_error_while_a_version_is_made_loses_no_accepted_update(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(quorum=2).begin("a", "b")
    room.push("a", ONES)
    assert room.run.stepper is not None
    with monkeypatch.context() as patch:
        patch.setattr(room.run.stepper, "_aggregate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            room.push("b", 3 * ONES)
    assert room.push("b", 3 * ONES, seq=1, base=0).accepted, "the receipt of the first time"
    assert room.run.version == 0
    room.wait(0.2)
    assert torch.equal(room.parameters, START - 2), "what waited makes the step later"


def test_updates_for_a_run_that_has_ended_are_refused() -> None:
    room = running()
    room.coordinator.stop("enough", room.now)
    assert room.push("g", ONES).reason == Reason.STOPPING.value
    assert room.state()["workers"]["g"]["refused"] == {"stopping": 1}


def test_the_largest_message_can_bring_the_outer_optimizers_state_back() -> None:
    limits = []
    for outer in ("sgd", "delay_compensated(keep=50)"):
        room = Room(outer=outer).begin("a")
        room.run.actions = []
        exchange.limit(room.run)
        (limit,) = room.run.actions
        assert isinstance(limit, Limit)
        limits.append(limit.largest_message_bytes)
    assert limits[1] - limits[0] >= 50 * 4 * 8 - 8 * 8


def test_a_quarantined_worker_is_refused_before_its_bytes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    room = running()
    member = room.run.members.named("g")
    assert member is not None
    member.barred_until = 100
    monkeypatch.setattr("lightning_async.server.admission.decode_update", lambda *_: pytest.fail("decoded"))
    assert bad(room, (b"\0" * 20, b"")).reason == Reason.QUARANTINED.value
    assert room.state()["workers"]["g"]["refused"] == {"quarantined": 1}


def test_every_reason_for_which_an_update_is_refused_is_here() -> None:
    """The rest are for requests of other kinds, or answered before an update is looked at."""
    other = {
        Reason.NAME, Reason.STRANGER, Reason.UNREADY, Reason.VERSION, Reason.DATASET, Reason.ROLE,
        Reason.INTERNAL, Reason.STOPPING, Reason.QUARANTINED, Reason.KEY, Reason.LEASE, Reason.LOST,
    }  # fmt: skip
    assert set(REFUSALS) | other == set(Reason)


def test_a_thousand_bad_updates_do_not_grow_the_server() -> None:
    room = running()
    frames = (b"\0" * 20, raw(BUFFERS))
    for _ in range(1000):
        assert not bad(room, frames).accepted
    member = room.run.members.named("g")
    assert member is not None
    assert member.refused == {"payload": 1000}
    assert len(member.receipts) == 8
    assert room.run.stepper is not None
    assert len(room.run.stepper.waiting[0]) == 0
