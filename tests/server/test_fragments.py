"""Runs in pieces, seen from the server: each has its slots, its quorum, its optimizer's state and its versions."""

from __future__ import annotations

import pytest
import torch
from room import LAYOUT, START, Room, floats

from lightning_async.errors import ConfigError, PayloadError
from lightning_async.outer import Update, nesterov
from lightning_async.server import Coordinator, memory

PIECES = LAYOUT.fragments(2)  # w, 6 numbers, and b, 2
ONES = torch.ones(8)


def test_a_version_moves_one_piece() -> None:
    room = Room(fragments=2).begin("a")
    room.push("a", torch.ones(6), group=0)
    assert torch.equal(room.parameters, START - torch.tensor([1.0] * 6 + [0.0] * 2))
    room.push("a", torch.ones(2), group=1)
    assert torch.equal(room.parameters, START - 1)
    assert room.run.version == 2


def test_momentum_of_a_piece_advances_with_that_piece() -> None:
    room = Room(fragments=2, outer="nesterov(lr=0.5, momentum=0.9)").begin("a")
    made = nesterov(lr=0.5, momentum=0.9)
    parts = [LAYOUT.part(START, piece) for piece in PIECES]
    states = [made.init(len(part)) for part in parts]
    for i, group in enumerate([0, 0, 1, 0, 1]):
        u = torch.full((len(parts[group]),), 0.1 * (i + 1))
        room.push("a", u, group=group)
        states[group] = made.step(parts[group], Update(u, 1.0, ((0, 1.0),)), states[group])
    for part, piece in zip(parts, PIECES, strict=True):
        assert torch.allclose(LAYOUT.part(room.parameters, piece), part, atol=1e-6)


def test_pieces_have_quorums_of_their_own_and_each_worker_learns_what_is_in() -> None:
    room = Room(fragments=2, quorum=2).begin("a", "b")
    room.push("a", torch.ones(6), group=0)
    room.push("a", torch.ones(2), group=1)
    assert room.run.version == 0
    room.push("b", torch.ones(2), group=1)
    assert room.run.version == 1
    answer = room.pull("a", have=0)
    assert answer is not None
    assert answer.message.included_of == [0, 2], "the first one still waits"


def test_staleness_is_counted_in_versions_of_a_piece() -> None:
    room = Room(fragments=2, staleness="fixed(bound=1)").begin("a", "b")
    for _ in range(4):
        room.push("a", ONES)
    receipt = room.push("b", ONES, base=1)
    assert (receipt.accepted, receipt.staleness) == (True, 1), "three versions, one of them of this piece and before it"
    assert room.push("b", ONES, base=0).reason == "stale"


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_who_is_behind_gets_the_pieces_that_changed(codec: str) -> None:
    room = Room(fragments=2, download_compression=codec).begin("a")
    room.push("a", torch.ones(2), group=1)
    answer = room.pull("a", have=0)
    assert answer is not None
    assert (answer.message.form, answer.message.pieces) == ("pieces" if codec == "none" else "deltas", [1])
    assert len(answer.payload) == 2
    if codec == "none":
        assert torch.equal(floats(answer.payload[0]), START[6:] - 1)
    room.push("a", torch.ones(6), group=0)
    behind = room.pull("a", have=0)
    assert behind is not None
    assert behind.message.form == "snapshot", "which is no longer than what has changed"


@pytest.mark.parametrize("fragments", [1, 2])
def test_a_checkpoints_state_is_put_back(fragments: int) -> None:
    room, fresh = (Room(fragments=fragments, outer="nesterov").begin("a") for _ in range(2))
    for _ in range(4):
        room.push("a", ONES)
    assert room.run.stepper is not None
    assert fresh.run.stepper is not None
    fresh.run.stepper.load(room.run.stepper.state())
    assert all(torch.equal(fresh.run.stepper.state()[k], v) for k, v in room.run.stepper.state().items())
    assert any(v.any() for v in fresh.run.stepper.state().values())


def test_values_are_made_once_for_all_workers() -> None:
    room = Room(fragments=2).begin("a", "b")
    room.push("a", torch.ones(2), group=1)
    first, second = (room.pull(name, have=0) for name in "ab")
    assert first is not None
    assert second is not None
    assert first.payload[0] is second.payload[0]
    room.push("a", torch.ones(2), group=1)
    third = room.pull("b", have=1)
    assert third is not None
    assert torch.equal(floats(third.payload[0]), START[6:] - 2)


def test_a_piece_that_is_sent_without_a_step_says_nothing_of_rounds() -> None:
    room = Room(fragments=2).begin("a")
    room.push("a", torch.ones(6), group=0, steps=4, samples=64, loss=2.0, round_s=8.0)
    member = room.run.members.named("a")
    assert member is not None
    before = member.pace
    room.now += 1.0
    room.push("a", torch.ones(2), group=1, steps=0)
    assert (member.loss, member.last_samples, member.round_s.value, member.pace) == (2.0, 64, 8.0, before)


def test_a_restored_run_has_its_pieces() -> None:
    room = Room(fragments=2, quorum=2, outer="nesterov", download_compression="int8").begin("a", "b")
    for name in "abab":
        room.push(name, ONES)
    room.push("a", ONES)
    again = Coordinator.restored(room.run.config, *memory.dump(room.run))
    assert again.run.stepper is not None
    assert room.run.stepper is not None
    ours, theirs = memory.dump(room.run), memory.dump(again.run)
    assert ours[0]["stepper"] == theirs[0]["stepper"]
    assert all(torch.equal(ours[1][name], tensor) for name, tensor in theirs[1].items())
    assert {key.split("/")[1] for key in again.run.stepper.state()} == {"0", "1"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"group": 2}, "protocol"),
        ({"group": -1}, "protocol"),
        ({"steps": -1}, "protocol"),
        ({"present": [0]}, "config"),
    ],
)
def test_what_is_of_no_piece_is_refused(change: dict[str, object], reason: str) -> None:
    room = Room(fragments=2).begin("a")
    assert room.push("a", torch.ones(6), **{"group": 0, **change}).reason == reason


def test_a_piece_of_another_length_is_refused() -> None:
    room = Room(fragments=2).begin("a")
    assert room.push("a", torch.ones(2), group=0).reason == "length"


def test_another_runs_state_is_refused() -> None:
    room = Room(fragments=2, outer="nesterov").begin("a")
    stepper = room.run.stepper
    assert stepper is not None
    for name in ("outer/momentum", "outer/7/momentum"):
        with pytest.raises(PayloadError, match="of no fragment; this run has 2"):
            stepper.load({name: torch.zeros(8)})


def test_what_cannot_work_in_pieces_is_said() -> None:
    with pytest.raises(ConfigError, match=r"kardam.*judges whole updates; leave fragments out"):
        Room(fragments=2, aggregation="kardam(f=1)")
    with pytest.raises(ConfigError, match="would wait for each other with different pieces"):
        Room(fragments=2, staleness="fixed(bound=0)", quorum="all")
    with pytest.raises(ConfigError, match="got fragments=2, expected 1"):
        Room(fragments=2, submit="gradient", local_steps=1)
