"""A service with a journal: nobody is told of what is not durable; and what becomes of bad disks and damaged files."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from eventually import ENOUGH_S, eventually
from room import BUFFERS, LAYOUT, START, TENSORS, raw

from lightning_async.cli.hosting import host
from lightning_async.cli.place import Place
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.persistence import JournalError, SnapshotError, commits, journal, write
from lightning_async.persistence.snapshot import MANIFEST
from lightning_async.persistence.snapshot import TENSORS as TENSORS_FILE
from lightning_async.server import Keeper, Service
from lightning_async.server.actions import Send
from lightning_async.server.recovery import recorded
from lightning_async.server.store import Store
from lightning_async.transport import memory
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, unpack

names = itertools.count(1)


class Server:
    """A recorded run over the memory transport, in this thread, and one client."""

    def __init__(self, folder: Path, **options: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.now = 100.0
        self.recorder = recorded(RunConfig(), "run", folder, self.now, run_id="an id")
        self.recorder.commits._retry_s = 0.01
        keeper = Keeper(folder, commits=self.recorder.commits, **options)
        self.listener = memory.listen(f"memory://durable-{next(names)}")
        self.service = Service(
            self.recorder.coordinator, self.listener, clock=lambda: self.now, keeper=keeper, recorder=self.recorder
        )
        self.line = memory.connect(self.listener.address)
        self._ids = itertools.count(1)

    @property
    def run(self) -> Any:
        return self.recorder.coordinator.run

    def send(self, message: m.Request, *payload: Any) -> int:
        number = next(self._ids)
        self.line.send(pack(Envelope(number, message, payload)))
        return number

    def turn(self, count: int = 1) -> None:
        for _ in range(count):
            self.service.wake()
            self.service.turn()

    def answers(self) -> list[Envelope]:
        found = []
        while (frames := self.line.receive(0.0)) is not None:
            found.append(unpack(frames))
        return found

    def answer(self) -> Any:
        """The next answer's message."""

        deadline = time.monotonic() + ENOUGH_S
        while (frames := self.line.receive(0.0)) is None:
            assert time.monotonic() < deadline, "no answer"
            self.turn()
        return unpack(frames).message

    def ask(self, message: m.Request, *payload: Any) -> Any:
        self.send(message, *payload)
        return self.answer()

    def begin(self) -> Server:
        hello = m.Hello(worker="a", instance="1", tensors=TENSORS, digest=LAYOUT.digest)
        if self.ask(hello).version < 0:
            assert isinstance(self.ask(m.Init(digest=LAYOUT.digest), raw(START), raw(BUFFERS)), m.Ack)
        return self

    def push(self, seq: int) -> int:
        return self.send(m.Push(seq=seq, base=max(0, seq - 2), digest=LAYOUT.digest), raw(torch.ones(8)), b"")

    def close(self) -> None:
        self.service.close()
        self.line.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    served: list[Server] = []

    def made(**options: Any) -> Server:
        served.append(Server(tmp_path / "state", **options))
        return served[-1]

    yield made
    for one in served:
        one.close()


def test_many_answers_that_find_nobody_are_no_recursion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(tmp_path / "state")
    told: list[bytes] = []
    monkeypatch.setattr(server.listener, "send", lambda peer, frames: bool(told.append(peer)))  # nobody is there
    monkeypatch.setattr(type(server.recorder), "durable", property(lambda recorder: -1))
    for _ in range(2000):
        server.service._perform([Send(b"gone", Envelope(1, m.Ack(version=0)), None)])
    monkeypatch.undo()
    monkeypatch.setattr(server.listener, "send", lambda peer, frames: bool(told.append(peer)))
    server.service._release()
    assert len(told) == 2000
    server.close()


def test_no_answer_leaves_before_what_it_tells_of_is_durable(serve: Callable[..., Server]) -> None:
    one = serve().begin()
    gate, append = threading.Semaphore(0), one.recorder.commits._journal.append

    def slow(*group: Any) -> None:
        assert gate.acquire(timeout=ENOUGH_S)
        append(*group)

    one.recorder.commits._journal.append = slow  # type: ignore[method-assign]
    pushed, beat, pulled = one.push(1), one.send(m.Beat()), one.send(m.Pull(have=-1))
    one.turn(20)
    assert one.run.version == 1, "it is handled"
    assert one.answers() == [], "and nobody knows"
    gate.release(10)
    got: list[Envelope] = []

    def all_there() -> bool:
        one.turn()
        got.extend(one.answers())
        return len(got) == 3

    eventually(all_there)
    assert [envelope.id for envelope in got] == [pushed, beat, pulled], "in order, for a beat's answer proves the push"


def test_a_full_disk_pauses_the_run_until_there_is_room(
    serve: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    one = serve().begin()
    journal = one.recorder.commits._journal
    journal._connection.execute("pragma query_only = 1")
    one.push(1)
    one.turn(3)
    eventually(lambda: one.recorder.commits.trouble)
    one.push(2)
    one.turn(3)
    assert one.answers() == []
    assert one.run.version == 1, "what comes meanwhile waits at the door"
    one.now += 3600.0
    one.turn(3)
    journal._connection.execute("pragma query_only = 0")
    first, second = one.answer(), one.answer()
    assert (first.seq, first.accepted, second.seq, second.accepted) == (1, True, 2, True)
    assert "The run is paused: nothing is acknowledged" in caplog.text
    assert one.run.members.named("a").alive, "an hour without a disk is no silence of the workers"


def test_what_a_full_disk_did_not_take_is_not_there_afterwards(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = serve().begin()
    assert one.push(1)
    assert one.answer().accepted
    one.recorder.commits._journal._connection.execute("pragma query_only = 1")
    one.push(2)
    one.turn(3)
    eventually(lambda: one.recorder.commits.trouble)
    monkeypatch.setattr(commits, "LAST_TRY_S", 0.05)
    one.close()
    again = serve()
    assert again.run.version == 1
    again.begin()
    again.push(2)
    assert again.answer() == m.Receipt(seq=2, accepted=True, version=1, staleness=1)


def hurt(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"?!" + content[len(content) // 2 + 2 :])


@pytest.mark.parametrize("file", [MANIFEST, TENSORS_FILE])
def test_a_damaged_snapshot_costs_nothing(
    serve: Callable[..., Server], tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = serve(every_versions=3).begin()
    for seq in range(1, 12):
        one.push(seq)
        assert one.answer().accepted
        one.now += 1.0
        one.turn()
        one.service._keeper._wait()  # type: ignore[union-attr]
    wanted = one.run.store.parameters.clone()
    one.close()
    snapshots = sorted((tmp_path / "state").glob("snapshot-*"))
    assert len(snapshots) == 2
    hurt(snapshots[-1] / file)
    again = serve()
    assert f"going on from {snapshots[0].name}" in caplog.text
    assert torch.equal(again.run.store.parameters, wanted)
    assert again.run.members.named("a").last_seq == 11
    again.close()
    for snapshot in (tmp_path / "state").glob("snapshot-*"):
        hurt(snapshot / file)
    with pytest.raises(SnapshotError, match="Put a copy of one back, or move the folder away"):
        serve()


def test_a_damaged_journal_is_an_error_that_says_what_to_do(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "INLINE_BYTES", 0)
    one = serve().begin()
    for seq in range(1, 6):
        one.push(seq)
        assert one.answer().accepted
    one.recorder.close()
    hurt(next((tmp_path / "state").glob("payload-*.bin")))
    with pytest.raises(JournalError, match=r"record \d+ of .* cannot be read: .* lightning-async resume --state .*"):
        serve()


def test_a_journal_that_was_removed_is_missed(
    serve: Callable[..., Server], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = serve().begin()
    one.push(1)
    assert one.answer().accepted
    one.close()
    for file in (tmp_path / "state").glob("journal.db*"):
        file.unlink()
    again = serve()
    assert again.run.version == 1, "what the snapshot has is there"
    assert "whatever was acknowledged after that is lost. Was journal.db removed?" in caplog.text
    again.begin().push(2)
    assert again.answer().accepted
    again.recorder.close()
    assert serve().run.version == 2


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for folder in (file, Path("/proc/none")):
        with pytest.raises(ConfigError, match=r"cannot keep a run in .* Make room there or make it writable"):
            host(RunConfig(), Place(address="memory://nowhere", state_dir=str(folder)))


def test_a_disk_that_is_full_from_the_start_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_async.persistence.journal.Journal.append", full)
    with pytest.raises(ConfigError, match=r"No space left on device\. Make room there"):
        host(RunConfig(), Place(address="memory://nowhere", state_dir=str(tmp_path / "state")))


def test_a_snapshot_that_cannot_be_written_is_tried_again(
    serve: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    room = threading.Event()

    def store(folder: Path, snapshot: Any) -> Path:
        if not room.is_set():
            raise OSError(28, "No space left on device")
        return write(folder, snapshot)

    one = serve(store=store, every_s=5.0).begin()
    one.push(1)
    assert one.answer().accepted
    for _ in range(3):
        one.now += 6.0
        one.turn()
        one.service._keeper._wait()  # type: ignore[union-attr]
    assert "no snapshot could be written" in caplog.text
    assert one.run.members.named("a").alive
    room.set()
    one.now += 6.0
    one.turn()
    one.service._keeper._wait()  # type: ignore[union-attr]
    assert list(one.service._keeper._folder.glob("snapshot-*"))  # type: ignore[union-attr]


def test_another_machines_last_bits_are_noticed_and_every_worker_gets_whole_parameters(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = serve().begin()
    one.push(1)
    assert one.answer().accepted
    one.recorder.close()
    mark = Store.mark
    with monkeypatch.context() as patch:
        patch.setattr(Store, "mark", lambda self: mark(self) + (self.version == 1))
        caplog.set_level(logging.ERROR)
        again = serve()
    assert "gives other parameters than its server had" in caplog.text
    assert again.run.version == 1, "all updates are there"
    again.begin()
    assert again.ask(m.Pull(have=1)).form == "snapshot"


def test_refused_updates_do_not_fill_the_disk(serve: Callable[..., Server], tmp_path: Path) -> None:
    one, payload = serve().begin(), bytes(1_000_000)
    size = lambda: sum(path.stat().st_size for path in (tmp_path / "state").iterdir() if path.is_file())  # noqa: E731
    before = size()
    for seq in range(1, 21):
        receipt = one.ask(m.Push(seq=seq, base=0, digest=LAYOUT.digest), payload, b"")
        assert (receipt.accepted, receipt.reason) == (False, "length")
    assert size() - before < 1_000_000, "of 20 million that were sent"
    one.service._keeper = None  # the journal alone tells the next server
    one.close()
    again = serve().begin()
    assert again.run.members.named("a").refused == {"length": 20}
    assert again.ask(m.Push(seq=20, base=0, digest=LAYOUT.digest), payload, b"").reason == "length"
    assert again.ask(m.Push(seq=21, base=0, digest=LAYOUT.digest), raw(torch.ones(8)), b"").accepted


def test_snapshots_and_journal_of_a_run_stay_small(serve: Callable[..., Server], tmp_path: Path) -> None:
    one = serve(every_versions=5).begin()
    for seq in range(1, 40):
        one.push(seq)
        assert one.answer().accepted
        one.now += 1.0
        one.turn()
    one.service._keeper._wait()  # type: ignore[union-attr]
    one.close()
    again = serve()
    journal = again.recorder.commits._journal
    assert journal.last - journal.first < 25, "what the older of two snapshots holds is forgotten"
    assert len(list((tmp_path / "state").glob("snapshot-*"))) == 2
