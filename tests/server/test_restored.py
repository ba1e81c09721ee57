"""A run that is dumped, written as JSON and restored goes on as the one that was never interrupted, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from room import LAYOUT, START, Room
from test_gradient import OPTIMIZERS, Local, submit

from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.persistence import Snapshot, newest, write
from lightning_async.server import Coordinator, Keeper, memory
from lightning_async.server.actions import Limit, Tick
from lightning_async.wire import messages as m
from lightning_async.wire.messages import Reason


def reopened(room: Room, tmp_path: Path, *names: str, **changes: Any) -> Room:
    """The same run in another process: through the files, with the same workers joined again."""
    write(tmp_path, Snapshot(*memory.dump(room.run)))
    snapshot = newest(tmp_path)
    assert snapshot is not None
    config = RunConfig(**{**room.run.config.as_dict(), **changes})
    again = Room()
    again.coordinator = Coordinator.restored(config, snapshot.record, snapshot.tensors)
    again.run = again.coordinator.run
    for name in names:
        assert isinstance(again.hello(name), m.Welcome)
    return again


def updates(seed: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, generator=generator) for _ in range(count)]


CONFIGS: list[dict[str, Any]] = [
    {},
    {"outer": "nesterov(lr=0.7, momentum=0.9)", "weight": "polynomial(a=0.5)"},
    {"download_compression": "fp16"},
    {"quorum": 2, "outer": "nesterov(lr=0.5, momentum=0.5)"},
    {"outer": "delayed_nesterov(buffer=4)", "staleness": "adaptive"},
    {"outer": "heloco"},
    {"outer": "delay_compensated(age_gated_adam(lr=0.1), keep=3)"},
    {"outer": "torch_optimizer(name='AdamW', lr=0.1)"},
    {"quorum": 3, "aggregation": "centered_clipping(tau=1.0)"},
    {"quorum": 3, "aggregation": "median", "compression": "int8"},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_run_goes_on_as_if_nothing_had_happened(config: dict[str, Any], tmp_path: Path) -> None:
    room = Room(**config).begin("a", "b", "c")
    for i, u in enumerate(updates(1, 10)):
        room.push("abc"[i % 3], u, buffers=torch.rand(4), samples=i + 1)
    again = reopened(room, tmp_path, "a", "b", "c")
    assert repr(again.coordinator) == repr(room.coordinator)
    for i, u in enumerate(updates(2, 11)):
        buffers = torch.full((4,), float(i))
        for one in (room, again):
            assert one.push("bca"[i % 3], u, buffers=buffers, samples=i + 1).accepted
        assert again.run.version == room.run.version
        assert torch.equal(again.parameters, room.parameters)
        assert torch.equal(again.buffers, room.buffers)
        assert again.run.store is not None
        assert room.run.store is not None
        assert torch.equal(again.run.store.published, room.run.store.published)
    assert again.run.steps_total == room.run.steps_total
    assert again.run.staleness.as_dict() == room.run.staleness.as_dict()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_so_does_every_torch_optimizer(name: str, tmp_path: Path) -> None:
    local = Local(OPTIMIZERS[name])
    room = Room(submit="gradient", local_steps=1).begin("a", optimizers=[local.record])
    hyper = [{"lr": [group["lr"] / 2, group["lr"]]} for group in local.hyper and local.optimizer.param_groups]
    for u in updates(1, 5):
        submit(room, "a", u, hyper, (0,))
    again = reopened(room, tmp_path, "a")
    for u in updates(2, 5):
        for one in (room, again):
            assert submit(one, "a", u, hyper).accepted
        assert torch.equal(again.parameters, room.parameters)


def test_a_waiting_update_is_not_lost(tmp_path: Path) -> None:
    room = Room(quorum=2).begin("a", "b")
    assert room.push("a", torch.ones(8)).accepted
    again = reopened(room, tmp_path, "a", "b")
    again.push("b", 3 * torch.ones(8))
    assert torch.equal(again.parameters, START - 2)


def test_a_repeated_push_gets_its_first_receipt_and_counts_once(tmp_path: Path) -> None:
    room = Room().begin("a")
    first = room.push("a", torch.ones(8), seq=1)
    again = reopened(room, tmp_path, "a")
    assert again.push("a", torch.ones(8), seq=1, base=0) == first
    assert again.run.version == 1
    assert again.push("a", torch.ones(8)).seq == 2


def test_the_seconds_of_a_worker_go_on_without_its_absences(tmp_path: Path) -> None:
    room = Room(patience_s=1000.0).begin("a", "b")
    room.wait(5.0, step_s=1.0)
    room.say("b", m.Leave())
    room.wait(2.0, step_s=1.0)
    again = reopened(room, tmp_path)
    again.now = 10_000.0  # another machine's clock
    again.handle(Tick())
    seen = again.state()["workers"]
    assert {name: worker["seconds"] for name, worker in seen.items()} == {"a": 7.0, "b": 5.0}
    assert {worker["silent_s"] for worker in seen.values()} == {0.0}, "nobody knows what was before"
    again.now += 50.0
    again.hello("a")
    again.now += 3.0
    again.hello("a")  # a rejoin is no new stay
    again.now += 1.0
    assert again.state()["workers"]["a"]["seconds"] == 11.0


def test_streams_and_shared_values_go_on(tmp_path: Path) -> None:
    room = Room(seed=4).begin("a")
    room.say("a", m.Lease(stream="train", length=10, count=7))
    room.say("a", m.Share(key="k", value="v"))
    again = reopened(room, tmp_path, "a")
    assert again.say("a", m.Lease(stream="train", length=10, count=5)).ranges == [[0, 7, 10], [1, 0, 2]]
    assert again.say("a", m.Share(key="k")).value == "v"


def test_a_run_without_parameters_is_restored_too(tmp_path: Path) -> None:
    room = Room()
    room.hello("a", rank=1)
    again = reopened(room, tmp_path)
    assert again.run.version == -1
    assert again.hello("a", rank=0).initialise


def test_another_configuration_is_refused_with_all_differences(tmp_path: Path) -> None:
    room = Room(local_steps=4).begin("a")
    with pytest.raises(ConfigError) as caught:
        reopened(room, tmp_path, local_steps=8, outer="sgd(lr=0.5)")
    assert "local_steps is 4 in the snapshot, 8 here" in str(caught.value)
    assert "outer is 'sgd(lr=1.0)' in the snapshot, 'sgd(lr=0.5)' here" in str(caught.value)
    assert reopened(room, tmp_path, total_steps=100, patience_s=99.0).run.config.total_steps == 100


def test_another_model_is_refused_by_the_restored_run(tmp_path: Path) -> None:
    again = reopened(Room().begin("a"), tmp_path)
    reply = again.hello("b", tensors=[["w", [3, 2], "float32", "parameter"]])
    assert reply.reason == Reason.LAYOUT.value
    assert "got 'w' with shape (3, 2)" in reply.detail


def test_the_restored_run_reads_no_larger_messages(tmp_path: Path) -> None:
    again = reopened(Room().begin("a"), tmp_path)
    assert [action for action in again.handle(Tick()) if isinstance(action, Limit)]
    assert not [action for action in again.handle(Tick()) if isinstance(action, Limit)]


@pytest.mark.parametrize("answers_lost", [0, 2])
def test_a_version_that_was_lost_is_not_taken_for_its_namesake(tmp_path: Path, answers_lost: int) -> None:
    room = Room(download_compression="fp16").begin("a", "b")
    room.push("a", torch.ones(8))
    again = reopened(room, tmp_path)
    room.push("a", torch.ones(8))  # version 2, of which the restored run knows nothing
    again.hello("a")
    for _ in range(2):
        again.push("a", -torch.ones(8))  # another version 2, and 3
    again.hello("b")
    for _ in range(answers_lost + 1):
        answer = again.pull("b", have=2)
        assert answer is not None
        assert answer.message.form == "snapshot"
    again.push("a", torch.ones(8))
    answer = again.pull("b", have=3)
    assert answer is not None
    assert answer.message.form == "deltas"
    assert again.pull("a", have=1).message.version == 4  # type: ignore[union-attr]


def test_the_record_is_json(tmp_path: Path) -> None:
    room = Room(quorum=2).begin("a", "b")
    room.push("a", torch.ones(8), loss=0.1)
    record, tensors = memory.dump(room.run)
    assert json.loads(json.dumps(record)) == record
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    room.push("b", torch.ones(8))
    room.push("a", torch.ones(8))
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors.items()), "a dump is never written again"


class Disk:
    """Takes snapshots, or fails."""

    def __init__(self) -> None:
        self.versions: list[int] = []
        self.full = False

    def write(self, folder: Path, snapshot: Snapshot) -> Path:
        if self.full:
            raise OSError("no space left")
        self.versions.append(snapshot.record["stepper"]["version"])
        return folder


def test_the_keeper_writes_when_it_is_time_and_something_changed(caplog: pytest.LogCaptureFixture) -> None:
    room, disk = Room(total_steps=4).begin("a"), Disk()
    keeper = Keeper(Path("nowhere"), every_s=30.0, store=disk.write)

    def look(now: float) -> list[int]:
        keeper.look(room.run, now)
        keeper._wait()
        return disk.versions

    assert look(0.0) == []
    room.push("a", torch.ones(8))
    assert look(29.0) == []
    assert look(30.0) == [1]
    assert look(61.0) == [1], "nothing has changed"
    disk.full = True
    room.push("a", torch.ones(8))
    assert look(92.0) == [1]
    assert "no space left" in caplog.text
    disk.full = False
    assert look(123.0) == [1, 2], "it is tried again"
    room.push("a", torch.ones(8))
    room.push("a", torch.ones(8))
    assert room.run.ended
    assert look(124.0) == [1, 2, 4], "a run that ends is written at once"
    keeper.close(room.run)
    assert disk.versions == [1, 2, 4]


def test_the_keeper_writes_at_the_end_what_has_changed() -> None:
    room, disk = Room().begin("a"), Disk()
    keeper = Keeper(Path("nowhere"), store=disk.write)
    room.push("a", torch.ones(8))
    keeper.close(room.run)
    keeper.close(room.run)
    assert disk.versions == [1]
    assert LAYOUT.d == 8
