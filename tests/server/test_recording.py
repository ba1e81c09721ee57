"""Replaying the records of a run gives that run: every tensor, number and receipt, whatever happened in it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from room import LAYOUT, START, Room, raw
from test_gradient import OPTIMIZERS, Local, submit

from lightning_async.codecs import none
from lightning_async.config import RunConfig
from lightning_async.errors import CallerError, ConfigError
from lightning_async.layout import read_manifest
from lightning_async.persistence import JournalError, Record, Snapshot
from lightning_async.server import Coordinator, coordinator, live, memory, recording, recovery, sharing
from lightning_async.server.actions import Action, Event, Received
from lightning_async.server.keeper import taken
from lightning_async.server.recorder import Recorder
from lightning_async.server.recovery import Recovered, from_snapshot, replay_one
from lightning_async.server.store import MARKED_BYTES, Store
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, unpack


class Tape:
    """In the place of the journal: the records, in memory, durable at once."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def submit(self, record: Record) -> None:
        self.records.append(record)

    @property
    def submitted(self) -> int:
        return len(self.records)

    durable = submitted


class Taped(Room):
    """A room whose events are recorded."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.tape = Tape()
        self._restart(None, RunConfig(**config))

    def _restart(self, before: Coordinator | None, config: RunConfig) -> None:
        self.given = config
        self.coordinator = recording.started(before, config, "test", self.now)
        self.run = self.coordinator.run
        self.recorder = Recorder(self.coordinator, self.tape)  # type: ignore[arg-type]
        self.tape.submit(recovery._start(self.tape.submitted + 1, self.coordinator, config, self.now))

    def restart(self, **changes: Any) -> None:
        """The server ends and another one begins, in another process whose clock began anew."""
        self.now = self.now % 7
        self._restart(self.coordinator, RunConfig(**{**self.given.as_dict(), **changes}))

    def handle(self, event: Event) -> list[Action]:
        brain, self.coordinator = self.coordinator, self.recorder  # type: ignore[assignment]
        try:
            return super().handle(event)
        finally:
            self.coordinator = brain


def replayed(records: list[Record], state: Recovered | None = None) -> Recovered:
    state = state or Recovered(None)
    for record in records:
        replay_one(state, record)
    return state


def assert_same(one: Coordinator, other: Coordinator) -> None:
    (record, tensors), (wanted, expected) = memory.dump(one.run), memory.dump(other.run)
    for values in (record, wanted):
        for member in values["members"].values():
            for untold in ("sent_bytes", "received_bytes", "before_s"):
                del member[untold]
            member["refused"] = {k: v for k, v in member["refused"].items() if k not in UNRECORDED}
        del values["refused_strangers"]
    assert record == wanted
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    here, there = live.dump(one.run), live.dump(other.run)
    assert (here["ended"], here["complete_at"]) == (there["ended"], there["complete_at"])
    for name, values in there["members"].items():
        assert {k: here["members"][name][k] for k in ("peer", "state", "layout")} == {
            k: values[k] for k in ("peer", "state", "layout")
        }


UNRECORDED = {"unknown_worker", "not_ready", "protocol", "duplicate_name", "limit", "role"}


def check(room: Taped) -> Recovered:
    """The tape from its beginning, and from a snapshot in its middle, gives the run."""
    state = replayed(room.tape.records)
    assert state.coordinator is not None
    assert not state.differing
    assert_same(state.coordinator, room.coordinator)
    half = len(room.tape.records) // 2
    middle = replayed(room.tape.records[:half])
    assert middle.coordinator is not None
    snapshot = taken(middle.coordinator.run, half)
    rest = from_snapshot(Snapshot(snapshot.record, {name: t.clone() for name, t in snapshot.tensors.items()}))
    assert rest.number == half
    replayed(room.tape.records[half:], rest)
    assert rest.coordinator is not None
    assert not rest.differing
    assert_same(rest.coordinator, room.coordinator)
    return state


class Life:
    """Random things that happen to a run, most of them well-behaved."""

    def __init__(self, room: Taped, seed: int, names: str = "abcde") -> None:
        self.room, self.chance, self.names = room, random.Random(seed), names
        self.generator = torch.Generator().manual_seed(seed)
        self.instance = dict.fromkeys(names, 1)

    def go(self, count: int) -> None:
        acts: list[tuple[Callable[[str], object], int]] = [
            (self.push, 30), (self.wait, 6), (self.hello, 4), (self.leave, 2), (self.strange, 3), (self.lease, 3),
            (self.share, 2), (self.restart, 1), (self.again, 2), (self.pull, 3),
        ]  # fmt: skip
        for _ in range(count):
            act = self.chance.choices([act for act, _ in acts], [weight for _, weight in acts])[0]
            act(self.chance.choice(self.names))

    def _there(self, name: str) -> bool:
        member = self.room.run.members.named(name)
        return member is not None and member.alive

    def push(self, name: str) -> None:
        if self._there(name):
            late = self.chance.randint(0, min(3, self.room.run.version))
            vector = torch.randn(8, generator=self.generator) * self.chance.choice([1.0, 1.0, 1.0, 1e6])
            buffers = torch.rand(4, generator=self.generator) if self.chance.random() < 0.7 else None
            self.room.push(
                name,
                vector,
                buffers=buffers,
                samples=self.chance.randint(1, 40),
                base=self.room.run.version - late,
                step_s=self.chance.random(),
                exchange_s=self.chance.random(),
            )

    def strange(self, name: str) -> None:
        """What is refused: NaN, a skipped layout, an old number, a stranger's."""
        if self._there(name):
            self.room.push(name, torch.ones(8), buffers=torch.full((4,), float("nan")))
            self.room.push(name, torch.ones(8), seq=1, digest="other")
        self.room.say("nobody", m.Lease(stream="train", length=10, count=1))

    def again(self, name: str) -> None:
        if self._there(name):
            member = self.room.run.members.named(name)
            assert member is not None
            if member.last_seq:
                self.room.push(name, torch.ones(8), seq=member.last_seq)

    def wait(self, name: str) -> None:
        self.room.wait(self.chance.choice([0.1, 0.5, 2.0, 40.0]), step_s=0.5)

    def hello(self, name: str) -> None:
        if not self._there(name):
            self.instance[name] += self.chance.random() < 0.5
            self.room.hello(name, instance=str(self.instance[name]), rank=self.names.index(name))

    def leave(self, name: str) -> None:
        if self._there(name):
            self.room.say(name, m.Leave(why="enough"))

    def lease(self, name: str) -> None:
        if self._there(name):
            self.room.say(name, m.Lease(stream="train", length=100, count=self.chance.randint(1, 30)))

    def share(self, name: str) -> None:
        if self._there(name):
            self.room.say(name, m.Share(key=self.chance.choice("xyz"), value=name))

    def pull(self, name: str) -> None:
        if self._there(name):
            self.room.pull(name, have=self.room.run.version, wait_s=1.0)

    def restart(self, name: str) -> None:
        self.room.restart(patience_s=self.chance.choice([20.0, 30.0]))
        for one in self.names:
            if self.chance.random() < 0.8:
                self.hello(one)


CONFIGS: list[dict[str, Any]] = [
    {"outer": "nesterov(lr=0.7, momentum=0.9)", "weight": "polynomial(a=0.5)", "staleness": "fixed(bound=2)"},
    {"quorum": "all", "grace_s": 1.0},
    {"quorum": 2, "grace_s": "auto", "local_steps": "auto(steps=4)"},
    {"quorum": 3, "aggregation": "trimmed_mean(f=1)", "quarantine_below": 0.6, "grace_s": 0.5},
    {"quorum": 5, "aggregation": "krum(f=1)", "compression": "int8", "download_compression": "fp16"},
    {"quorum": 5, "aggregation": "pipeline(bucketing(s=2), median)", "download_compression": "topk(density=0.3)"},
    {"aggregation": "kardam(f=1)", "workers": 5},
    {"staleness": "adaptive"},
    {"fragments": 2, "outer": "nesterov(lr=0.7, momentum=0.9)", "quorum": 2, "download_compression": "int8"},
    {"fragments": 2, "aggregation": "trimmed_mean(f=1)", "quorum": 3},
    {"staleness": "fixed(bound=0)", "quorum": "all", "barrier_s": 3.0},
    {"quorum": 4, "aggregation": "centered_clipping(tau=1.0)", "total_steps": 60},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_replay_is_the_run(config: dict[str, Any]) -> None:
    for seed in range(3):
        room = Taped(**config).begin(*"abcde")
        assert isinstance(room, Taped)
        Life(room, seed).go(250)
        state = check(room)
        assert state.verified > 0


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_replay_in_gradient_mode(name: str) -> None:
    local = Local(OPTIMIZERS[name])
    room = Taped(submit="gradient", local_steps=1)
    room.begin("a", optimizers=[local.record])
    hyper = [{"lr": [group["lr"] / 2, group["lr"]]} for group in local.optimizer.param_groups]
    for i in range(12):
        submit(room, "a", torch.randn(8, generator=torch.Generator().manual_seed(i)), hyper, (0,) if i % 3 else (0, 1))
        if i == 6:
            room.restart()
            room.hello("a")
    check(room)


def test_a_run_that_has_ended_goes_on_when_it_is_served_again() -> None:
    room = Taped().begin("a")
    assert isinstance(room, Taped)
    room.push("a", torch.ones(8))
    room.recorder.stop("enough", room.now)
    assert room.run.ended
    assert room.push("a", torch.ones(8)).reason == "stopping"
    room.restart()
    room.hello("a")
    assert room.push("a", torch.ones(8)).accepted
    check(room)


def test_the_first_receipt_survives_and_a_new_process_learns_its_number() -> None:
    room = Taped().begin("a")
    assert isinstance(room, Taped)
    first = room.push("a", torch.ones(8), seq=1)
    state = replayed(room.tape.records)
    room.coordinator = state.coordinator  # type: ignore[assignment]
    assert room.coordinator is not None
    room.run = room.coordinator.run
    room.restart()
    assert room.hello("a").last_seq == 1
    assert room.push("a", 5 * torch.ones(8), seq=1, base=0) == first
    assert torch.equal(room.parameters, START - 1)
    assert room.hello("a", instance="2").reason == "duplicate_name"
    room.say("a", m.Leave())
    assert room.hello("a", instance="2").last_seq == 1
    assert room.push("a", torch.ones(8), seq=1, base=0).reason == "sequence", "another process has another update"


def test_questions_beats_and_strangers_leave_no_record() -> None:
    room = Taped().begin("a")
    assert isinstance(room, Taped)
    before = room.tape.submitted
    for message in (m.Beat(), m.Pull(), m.Status(), m.Fetch(), m.Share(key="k"), m.Init(digest=LAYOUT.digest)):
        room.ask("a", message)
    for _ in range(5):
        room.say("stranger", m.Lease(stream="s", length=1, count=1))
    room.wait(5.0)
    assert room.tape.submitted == before
    first = room.push("a", torch.ones(8))
    assert room.push("a", torch.ones(8), seq=1, base=0) == first
    assert room.tape.submitted == before + 1, "a repeated push is recorded once"


def test_of_a_refused_update_only_the_receipt_is_recorded() -> None:
    room = Taped(staleness="fixed(bound=2)").begin("a")
    assert isinstance(room, Taped)
    for _ in range(8):
        room.push("a", torch.ones(8))
    before = room.tape.submitted
    huge = {"hyper": [[0.5] * 60_000], "digest": "x" * 4000, "loss": 1.0}
    reasons = [
        room.push("a", torch.ones(8), buffers=torch.full((4,), float("nan"))).reason,
        room.push("a", torch.ones(8), base=0).reason,
        room.push("a", 1e6 * torch.ones(8)).reason,
        room.push("a", torch.ones(8), **huge).reason,
        room.push("a", torch.ones(8), samples=0, hyper=huge["hyper"]).reason,
    ]
    assert reasons == ["not_finite", "stale", "norm", "layout", "protocol"]
    records = room.tape.records[before:]
    assert len(records) == len(reasons)
    assert max(record.bytes for record in records) < 1000
    assert all(not record.frames for record in records)
    check(room)


def test_what_was_refused_for_its_staleness_is_kept_whole_where_everything_is_kept() -> None:
    room = Taped(staleness="fixed(bound=0)").begin("a")
    assert isinstance(room, Taped)
    room.recorder._keeps = True
    room.push("a", torch.ones(8))
    assert room.push("a", torch.ones(8), base=0).reason == "stale"
    assert [len(frame) for frame in room.tape.records[-1].frames] == [32, 0]
    assert room.push("a", torch.ones(8), digest="x").reason == "layout"
    assert not room.tape.records[-1].frames
    check(room)


def test_what_cannot_be_recorded_changes_nothing() -> None:
    room = Taped().begin("a")
    assert isinstance(room, Taped)
    before = room.tape.submitted
    host = {str(i): [0.5] * 65_000 for i in range(8)}  # fits as it came, in single precision, and not as it is written
    with pytest.raises(CallerError, match="header"):
        room.hello("hostile", host=host)
    assert room.run.members.named("hostile") is None
    assert room.tape.submitted == before
    room.push("a", torch.ones(8))
    check(room)


def test_a_tick_that_found_somebody_silent_is_recorded_with_the_name() -> None:
    room = Taped(quorum="all", patience_s=10.0).begin("a", "b")
    assert isinstance(room, Taped)
    for _ in range(8):
        room.push("a", torch.ones(8))
        room.wait(3.0)
    steps = [recording.read_step(record) for record in room.tape.records]
    assert [step.values["silent"] for step in steps if step.kind == recording.TICK] == [["b"]]
    assert room.run.version > 0
    check(room)


def test_a_clock_that_jumps_back_stands_still() -> None:
    room = Taped(grace_s=5.0, quorum=1).begin("a", "b")
    assert isinstance(room, Taped)
    room.push("a", torch.ones(8))
    room.now -= 50.0
    room.wait(10.0)
    assert room.run.version == 0, "no time has passed for the run"
    room.now += 60.0
    room.wait(1.0)
    assert room.run.version == 1
    check(room)


def test_an_event_that_broke_the_coordinator_breaks_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it may be done, so it is part of the run."""

    def half_done(run: Any, peer: bytes, member: Any, envelope: Any) -> Any:
        run.shared["half"] = "done"
        raise RuntimeError("a bug")

    monkeypatch.setitem(coordinator.ANSWERS, m.Share, half_done)
    room = Taped().begin("a")
    assert isinstance(room, Taped)
    with pytest.raises(RuntimeError, match="a bug"):
        room.say("a", m.Share(key="k", value="v"))
    assert room.run.shared == {"half": "done"}
    check(room)
    monkeypatch.setitem(coordinator.ANSWERS, m.Share, sharing.share)
    assert replayed(room.tape.records).coordinator is not None, "repaired meanwhile: the request is done instead"


def test_pardon_is_recorded_without_its_token() -> None:
    room = Taped(quorum=3, aggregation="trimmed_mean(f=1)", quarantine_below=0.5).begin("a", "b", "c")
    assert isinstance(room, Taped)
    member = room.run.members.named("b")
    assert member is not None
    member.barred_until = 100
    with pytest.raises(ConfigError):
        room.recorder.pardon("nobody", room.now)
    before = room.tape.submitted
    room.recorder.pardon("b", room.now)
    assert room.tape.submitted == before + 1
    assert recording.read_step(room.tape.records[-1]).values == {"worker": "b"}


def test_other_parameters_than_were_recorded_are_noticed() -> None:
    room = Taped(outer="nesterov(lr=0.7, momentum=0.9)").begin("a")
    assert isinstance(room, Taped)
    for i in range(6):
        room.push("a", torch.full((8,), float(i + 1)))
    records = list(room.tape.records)
    step = recording.read_step(records[4])
    assert step.event is not None
    altered = bytearray(records[4].frames[0])
    altered[2] ^= 1
    records[4] = Record(records[4].number, records[4].kind, records[4].head, (bytes(altered), records[4].frames[1]))
    state = replayed(records)
    assert state.differing.startswith("record 5: version 2")


def test_a_journal_that_begins_in_the_middle_is_refused() -> None:
    room = Taped().begin("a")
    assert isinstance(room, Taped)
    room.push("a", torch.ones(8))
    room.restart()
    with pytest.raises(JournalError, match="the run began before this record"):
        replayed(room.tape.records[-1:])


def test_the_mark_sees_every_part_of_a_large_vector_within_sixteen_versions() -> None:
    d = MARKED_BYTES // 4 * 20 + 3
    layout = read_manifest([["w", [d], "float32", "parameter"]])
    stores = [Store(layout, none()) for _ in range(2)]
    for place in (0, d // 2, d - 1):
        for store in stores:
            store.start(torch.zeros(d), torch.empty(0))
        stores[1].parameters[place] = 1e-3
        differing = 0
        for _ in range(16):
            for store in stores:
                store.advance(lambda parameters: None)
            differing += stores[0].mark() != stores[1].mark()
        assert differing == 1


def test_an_init_of_a_worker_is_recorded_with_its_parameters() -> None:
    room = Taped().begin("a")
    assert isinstance(room, Taped)
    frames = [record.frames for record in room.tape.records if record.frames]
    assert bytes(frames[0][0]) == raw(START)
    assert [record.number for record in room.tape.records] == list(itertools.islice(itertools.count(1), 3))


def test_who_was_shown_out_is_out_in_the_replay_too() -> None:
    """A quorum of all is complete without it, at once."""
    room = Taped(quorum="all").begin("a", "b")
    room.push("a", torch.ones(8))
    assert room.run.version == 0
    room.now += 1.0
    room.recorder.expel(["b", "nobody"], "its key was revoked", room.now)
    assert room.run.version == 1
    assert [member.name for member in room.run.members.workers()] == ["a"]
    state = replayed(room.tape.records)
    assert state.coordinator is not None
    assert state.differing == ""
    assert state.coordinator.run.version == 1
    assert_same(state.coordinator, room.coordinator)


def test_a_payload_is_covered_by_its_senders_sum_all_the_way_to_the_disk() -> None:
    """It is summed once, when it comes: a bit that turns in this machine's memory after that is found at the replay."""
    received = [
        b"",
        *(bytearray(frame) for frame in pack(Envelope(2, m.Push(seq=1, base=0, digest="d"), (raw(START),)))[1:]),
    ]
    envelope = unpack(received)
    event = Received(b"peer", envelope)
    record = recording.message_record(1, event, recording.header_of(event), 0.0, {"version": 0})
    before = record.sum()
    received[2][5] ^= 1
    assert record.sum() == before, "the sum of what came"
    read = Record(1, record.kind, record.head, tuple(bytes(frame) for frame in record.frames))
    assert read.sum() != before, "the sum of what stands on the disk"
    received[2][5] ^= 1
    assert Record(1, record.kind, record.head, tuple(bytes(frame) for frame in record.frames)).sum() == before
