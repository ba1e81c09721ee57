"""Group commit: durable in order and in groups, paused by a disk that takes nothing, and nothing is lost at the end."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from eventually import ENOUGH_S, eventually

from lightning_async.persistence import Commits, Journal, Record, commits, open_journal, payloads


class Slow:
    """A journal whose commits wait until they are let through; it may have a full disk, or a bug."""

    def __init__(self) -> None:
        self.last = 0
        self.groups: list[list[int]] = []
        self.pruned: list[int] = []
        self.gate = threading.Semaphore(0)
        self.trouble: BaseException | None = None
        self.unprunable: OSError | None = None
        self.closed = False

    def append(self, records: Sequence[Record], following: object) -> None:
        assert self.gate.acquire(timeout=ENOUGH_S)
        if self.trouble is not None:
            raise self.trouble
        self.groups.append([record.number for record in records])
        self.last = records[-1].number

    def prune(self, up_to: int) -> None:
        self.pruned.append(up_to)
        if self.unprunable is not None:
            raise self.unprunable

    def close(self) -> None:
        self.closed = True


def made(journal: object) -> Commits:
    assert isinstance(journal, (Journal, Slow))
    return Commits(journal, retry_s=0.01)  # type: ignore[arg-type]


def record(number: int) -> Record:
    return Record(number, "message", b"head", (bytes(100),))


def test_what_gathers_during_a_commit_is_the_next_group() -> None:
    disk = Slow()
    one = made(disk)
    told = threading.Semaphore(0)
    one.told = told.release
    one.submit(record(1))
    disk.gate.release()
    assert told.acquire(timeout=ENOUGH_S)
    assert one.durable == 1
    for number in range(2, 6):
        one.submit(record(number))
    assert one.durable == 1
    disk.gate.release(4)
    assert one.wait(5, ENOUGH_S)
    assert [number for group in disk.groups for number in group] == [1, 2, 3, 4, 5]
    assert len(disk.groups) <= 3, "the first of them may be under way when the others come"
    one.close()
    assert disk.closed


def test_a_full_disk_pauses_and_then_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    disk = Slow()
    disk.trouble = OSError(28, "No space left on device")
    one = made(disk)
    disk.gate.release(100)
    one.submit(record(1))
    eventually(lambda: one.trouble)
    assert not one.has_room
    assert not one.wait(1, 0.05)
    one.submit(record(2))
    disk.trouble = None
    assert one.wait(2, ENOUGH_S)
    assert one.has_room
    assert [number for group in disk.groups for number in group] == [1, 2]
    assert "No space left on device. The run is paused: nothing is acknowledged" in caplog.text
    assert "Make room on the disk" in caplog.text
    assert "can be written again" in caplog.text
    assert caplog.text.count("cannot be written") == 1, "said once, not at every try"
    one.close()


def test_what_a_full_disk_never_took_is_dropped_at_the_end_with_an_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "LAST_TRY_S", 0.05)
    disk = Slow()
    disk.trouble = OSError(28, "No space left on device")
    disk.gate.release(10**6)
    one = made(disk)
    one.submit(record(1))
    one.close()
    assert one.durable == 0
    assert "1 events are not in the journal, and nobody was told of them" in caplog.text
    one.close()


def test_a_bug_in_its_thread_is_raised_to_who_submits(caplog: pytest.LogCaptureFixture) -> None:
    disk = Slow()
    disk.trouble = ZeroDivisionError()
    disk.gate.release(5)
    one = made(disk)
    one.submit(record(1))
    eventually(lambda: not one._thread.is_alive())
    with pytest.raises(RuntimeError, match="the journal's thread has failed"):
        one.submit(record(2))
    assert not one.has_room
    assert not one.wait(1, 0.0)
    one.close()
    assert "nothing is acknowledged any more" in caplog.text


def test_closing_writes_what_was_submitted_and_prunes_what_was_asked(tmp_path: Path) -> None:
    one = made(open_journal(tmp_path))
    for number in range(1, 50):
        one.submit(record(number))
    one.prune(20)
    one.close()
    journal = open_journal(tmp_path)
    try:
        assert journal.last == 49
        assert journal.first > 1
        assert [r.number for r in journal.read(journal.first - 1)] == list(range(journal.first, 50))
    finally:
        journal.close()


def test_more_than_the_bound_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "MOST_WAITING_BYTES", 250)
    disk = Slow()
    one = made(disk)
    for number in (1, 2):
        assert one.has_room
        one.submit(record(number))
    one.submit(record(3))
    assert not one.has_room
    disk.gate.release(3)
    assert one.wait(3, ENOUGH_S)
    assert one.has_room
    one.close()


def test_a_journal_that_cannot_be_shortened_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    disk = Slow()
    disk.unprunable = OSError(28, "No space left on device")
    one = made(disk)
    one.prune(1)
    eventually(lambda: "cannot be shortened" in caplog.text)
    assert one.has_room
    disk.gate.release()
    one.submit(record(1))
    assert one.wait(1, ENOUGH_S)
    one.close()


def test_a_prune_that_came_with_a_group_that_failed_is_not_forgotten() -> None:
    disk = Slow()
    disk.trouble = OSError(28, "No space left on device")
    one = made(disk)
    one.submit(record(1))
    one.prune(1)
    disk.gate.release(100)
    eventually(lambda: one.trouble)
    disk.trouble = None
    eventually(lambda: disk.pruned)
    assert (one.durable, disk.pruned) == (1, [1])
    one.close()


class Disk:
    """A disk that says when it has been asked to force something, and is done when it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.gate, self._force = threading.Semaphore(0), threading.Semaphore(0), payloads.force_data
        monkeypatch.setattr(payloads, "force_data", self.force)

    def force(self, descriptor: int) -> None:
        self.asked.release()
        assert self.gate.acquire(timeout=ENOUGH_S)
        self._force(descriptor)


def large(number: int) -> Record:
    return Record(number, "message", b"head", (bytes([number]) * 20_000,))


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Commits, Disk]]:
    """A journal in `tmp_path` whose first group, record 1, is being forced, and stands in its file."""
    disk, one = Disk(monkeypatch), made(open_journal(tmp_path))
    one.submit(large(1))
    assert disk.asked.acquire(timeout=ENOUGH_S)
    yield one, disk
    disk.gate.release(100)
    one.close()


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("payload-*.bin"))


def test_payloads_are_written_while_those_before_them_are_forced(tmp_path: Path, on_disk: tuple[Commits, Disk]) -> None:
    one, disk = on_disk
    for number in (2, 3):
        one.submit(large(number))
    eventually(lambda: written(tmp_path) == 3 * 20_000, what="two payloads ahead of their turn")
    assert one.durable == 0
    disk.gate.release()
    assert one.wait(1, ENOUGH_S)
    assert disk.asked.acquire(timeout=ENOUGH_S)
    assert one.durable == 1, "they are forced in their turn, and not told of before"
    disk.gate.release(100)
    assert one.wait(3, ENOUGH_S)
    journal = open_journal(tmp_path, writing=False)
    assert [bytes(record.frames[0][:1]) for record in journal.read()] == [b"\1", b"\2", b"\3"]
    journal.close()


def test_a_payload_that_cannot_be_written_ahead_loses_none(
    tmp_path: Path, on_disk: tuple[Commits, Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, disk = on_disk
    write = payloads.Payloads.write

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    disk.gate.release(100)
    monkeypatch.setattr(payloads.Payloads, "write", full)
    one.submit(large(2))
    eventually(lambda: one.trouble)
    monkeypatch.setattr(payloads.Payloads, "write", write)
    assert one.wait(2, ENOUGH_S)
    journal = open_journal(tmp_path, writing=False)
    assert [record.number for record in journal.read()] == [1, 2]
    journal.close()


def test_what_was_written_ahead_is_cut_off_after_a_crash(
    tmp_path: Path, on_disk: tuple[Commits, Disk], tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, _ = on_disk
    one.submit(large(2))
    eventually(lambda: written(tmp_path) == 2 * 20_000)
    left = tmp_path_factory.mktemp("left") / "state"
    shutil.copytree(tmp_path, left)
    journal = open_journal(left)
    journal.close()
    assert (journal.last, written(left)) == (0, 0), "nobody was told of either"
