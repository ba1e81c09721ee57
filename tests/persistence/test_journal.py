"""The journal: what append has returned from is there, what a crash left behind is cut off, what is damaged is said."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_async.persistence import Journal, JournalError, Record, journal, open_journal, payloads
from lightning_async.persistence.payloads import Payloads

LARGE = os.urandom(30_000)


def record(number: int, *frames: bytes) -> Record:
    return Record(number, "message", b"head %d" % number, frames or (b"small", b""))


def plain(records: Iterator[Record]) -> list[tuple[int, str, bytes, tuple[bytes, ...]]]:
    return [(r.number, r.kind, r.head, tuple(bytes(frame) for frame in r.frames)) for r in records]


class Stop(BaseException):
    """The process dies here: nothing after it runs."""


def dying(point: str) -> Callable[[str], None]:
    def at(passed: str) -> None:
        if passed == point:
            raise Stop

    return at


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Journal]]:
    """Opens journals in tmp_path, and lets go of them as a dying process would: without a word to SQLite."""
    all_of_them: list[Journal] = []

    def opener(**options: object) -> Journal:
        all_of_them.append(open_journal(tmp_path, **options))  # type: ignore[arg-type]
        return all_of_them[-1]

    yield opener
    for one in all_of_them:
        one.close()


def copied(folder: Path, there: Path) -> Path:
    """The folder as another process would find it now."""
    shutil.copytree(folder, there, ignore=shutil.ignore_patterns("*-shm"))
    return there


def test_what_was_appended_is_read_in_another_process(opened: Callable[..., Journal], tmp_path: Path) -> None:
    rows = [record(1), record(2, LARGE, b""), record(3), record(4, b"x", LARGE), record(5)]
    one = opened()
    one.append(rows[:2])
    one.append(rows[2:])
    again = open_journal(copied(tmp_path, tmp_path / "other"))
    try:
        assert (again.first, again.last) == (1, 5)
        assert plain(again.read()) == plain(iter(rows))
        assert plain(again.read(3)) == plain(iter(rows[3:]))
        assert plain(again.read(5)) == []
    finally:
        again.close()


def test_numbers_begin_where_a_snapshot_ends(opened: Callable[..., Journal]) -> None:
    one = opened(start=41)
    assert (one.first, one.last) == (41, 40)
    one.append([record(41)])
    one.close()
    assert (opened().first, opened().last) == (41, 41)


def test_pruned_records_and_their_files_go_and_the_last_stays(
    opened: Callable[..., Journal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payloads, "SEGMENT_BYTES", 50_000)
    one = opened()
    for number in range(1, 11):
        one.append([record(number, LARGE)])
    files = len(list(tmp_path.glob("payload-*.bin")))
    assert files == 5
    one.prune(6)
    assert (one.first, one.last) == (7, 10)
    assert len(list(tmp_path.glob("payload-*.bin"))) == 2
    assert [r.number for r in one.read(6)] == [7, 8, 9, 10]
    one.prune(99)
    assert (one.first, one.last) == (10, 10)
    one.append([record(11, LARGE)])
    assert [bytes(r.frames[0]) for r in one.read(9)] == [LARGE, LARGE]


def test_a_gap_before_what_is_asked_for_is_said(opened: Callable[..., Journal]) -> None:
    one = opened()
    one.append([record(n) for n in range(1, 9)])
    one.prune(4)
    assert [r.number for r in one.read(4)] == [5, 6, 7, 8]
    with pytest.raises(JournalError, match=r"record 3 .* it is not there"):
        list(one.read(2))


@pytest.mark.parametrize("point", ["journal.written", "journal.synced", "journal.inserted"])
def test_what_a_crash_left_is_cut_off_with_a_warning(
    tmp_path: Path, point: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = open_journal(tmp_path, at=dying(point))
    one._at = lambda passed: None
    one.append([record(1, LARGE), record(2)])
    one._at = dying(point)
    with pytest.raises(Stop):
        one.append([record(3, LARGE), record(4)])
    there = copied(tmp_path, tmp_path / "there")
    one.close()
    again = open_journal(there)
    try:
        assert plain(again.read()) == plain(iter([record(1, LARGE), record(2)]))
        assert "dropped 30000 bytes of payload" in caplog.text
        assert "everything that was acknowledged is there" in caplog.text
        again.append([record(3, LARGE)])
        assert [bytes(r.frames[0]) for r in again.read(2)] == [LARGE]
    finally:
        again.close()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_every_prefix_of_a_payload_that_was_under_way_is_a_torn_tail(
    tmp_path: Path, keep: float, caplog: pytest.LogCaptureFixture
) -> None:
    one = open_journal(tmp_path)
    one.append([record(1, LARGE)])
    end = (tmp_path / "payload-000000000001.bin").stat().st_size
    one.close()
    with (tmp_path / "payload-000000000001.bin").open("ab") as file:
        file.write(LARGE[: int(keep * len(LARGE))])
    again = open_journal(tmp_path)
    try:
        assert len(list(again.read())) == 1
        assert (tmp_path / "payload-000000000001.bin").stat().st_size == end
        assert ("dropped" in caplog.text) is (keep > 0)
    finally:
        again.close()


def test_a_file_that_only_a_crash_began_goes(tmp_path: Path) -> None:
    open_journal(tmp_path).close()
    (tmp_path / "payload-000000000001.bin").write_bytes(LARGE)
    open_journal(tmp_path).close()
    assert not list(tmp_path.glob("payload-*.bin"))


def wal_of(tmp_path: Path, commits: int) -> tuple[Path, bytes]:
    """A folder whose write-ahead log has so many commits in it, and the log."""
    one = open_journal(tmp_path / "one")
    for number in range(1, commits + 1):
        one.append([record(number)])
    there = copied(tmp_path / "one", tmp_path / "there")
    one.close()
    return there, (there / "journal.db-wal").read_bytes()


@pytest.fixture
def one_folder(tmp_path: Path) -> Path:
    (tmp_path / "one").mkdir()
    return tmp_path


def test_a_log_that_ends_in_the_middle_of_a_commit_is_a_torn_tail(
    one_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there, log = wal_of(one_folder, 5)
    (there / "journal.db-wal").write_bytes(log[:-100])
    again = open_journal(there)
    try:
        assert [r.number for r in again.read()] == [1, 2, 3, 4]
        assert "pages of the write-ahead log" in caplog.text
    finally:
        again.close()


def test_a_log_that_was_damaged_later_is_an_error_and_no_torn_tail(one_folder: Path) -> None:
    there, log = wal_of(one_folder, 8)
    damaged = bytearray(log)
    damaged[len(log) // 2] ^= 1
    (there / "journal.db-wal").write_bytes(damaged)
    with pytest.raises(JournalError, match=r"commits stand in them: .* acknowledged updates are in it"):
        open_journal(there)


def damage(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 64]))


def test_a_damaged_payload_is_said_with_what_to_do(tmp_path: Path) -> None:
    one = open_journal(tmp_path)
    one.append([record(n, LARGE) for n in range(1, 4)])
    one.close()
    damage(tmp_path / "payload-000000000001.bin", 40_000)
    again = open_journal(tmp_path)
    try:
        assert [r.number for r in again.read(2)] == [3], "what a snapshot holds need not be read"
        with pytest.raises(JournalError, match=r"record 2 .* checksum .* the 1 after it. .* --cut 1"):
            list(again.read())
        assert again.cut_after(1) == 2
        assert [r.number for r in again.read()] == [1]
    finally:
        again.close()


def test_a_damaged_page_is_said_with_what_to_do(tmp_path: Path) -> None:
    one = open_journal(tmp_path)
    one.append([record(n, os.urandom(3000)) for n in range(1, 40)])
    one.close()
    path = tmp_path / "journal.db"
    for at in range(8192, path.stat().st_size, 4096):
        damage(path, at + 2000)
        damage(path, at + 3000)
    with pytest.raises(JournalError, match=r"[Pp]ut a copy of the folder back"):  # noqa: PT012, where it is seen is SQLite's
        again = open_journal(tmp_path)
        try:
            list(again.read())
        finally:
            again.close()


def test_a_page_that_is_none_is_said_with_what_to_do(tmp_path: Path) -> None:
    one = open_journal(tmp_path)
    one.append([record(n, os.urandom(3000)) for n in range(1, 40)])
    one.close()
    middle = (tmp_path / "journal.db").stat().st_size // 2 // 4096 * 4096
    damage(tmp_path / "journal.db", middle)  # says which kind of page it is
    reader = open_journal(tmp_path, writing=False)
    try:
        for reads in (lambda: list(reader.read()), lambda: reader.newest("no such")):
            with pytest.raises(JournalError, match=r"move journal.db and its companions away to go on from the newest"):
                reads()
    finally:
        reader.close()


def test_a_file_that_is_no_journal_is_said(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"not a database" * 400)
    with pytest.raises(JournalError, match=r"not a database.*move journal.db and its companions away"):
        open_journal(tmp_path)


def test_another_format_is_refused_or_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = open_journal(tmp_path)
    one.append([record(1)])
    one.close()
    with sqlite3.connect(tmp_path / "journal.db") as raw:
        raw.execute("pragma user_version = 3")
    raw.close()
    with pytest.raises(JournalError, match=r"format 3; this version reads 1. Update the package"):
        open_journal(tmp_path)
    monkeypatch.setattr(journal, "FORMAT", 4)
    monkeypatch.setattr(journal, "MIGRATIONS", {3: ("create table more (x integer)",)})
    with pytest.raises(JournalError, match="Start a server on it once"):
        open_journal(tmp_path, writing=False)
    again = open_journal(tmp_path)
    assert [r.number for r in again.read()] == [1]
    again.close()
    open_journal(tmp_path, writing=False).close()


def test_a_reader_sees_what_a_writer_has_committed(tmp_path: Path) -> None:
    writer = open_journal(tmp_path)
    writer.append([record(1, LARGE)])
    reader = open_journal(tmp_path, writing=False)
    try:
        assert [r.number for r in reader.read()] == [1]
        writer.append([record(2)])
    finally:
        reader.close()
        writer.close()
    with pytest.raises(JournalError, match="there is no journal"):
        open_journal(tmp_path / "nowhere", writing=False)


class Full(Payloads):
    """A disk that takes half of a payload while it is `full`."""

    full = True

    def write(self, number: int, frames: object) -> payloads.Place:
        if self.full:
            super().write(number, [LARGE[:1000]])
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(number, frames)  # type: ignore[arg-type]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    one = open_journal(tmp_path)
    one.append([record(1, LARGE)])
    disk = Full(tmp_path)
    disk.back_to(one._payloads.end)
    one._payloads.close()
    one._payloads = disk
    with pytest.raises(OSError, match="No space left"):
        one.append([record(2), record(3, LARGE)])
    disk.full = False
    one.append([record(2), record(3, LARGE), record(4)])
    assert plain(one.read(1)) == plain(iter([record(2), record(3, LARGE), record(4)]))
    one.close()


def test_a_file_that_cannot_be_cut_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(payloads.FileIO):
        def truncate(self, size: int | None = None) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    store = Payloads(tmp_path)
    kept = store.write(1, [b"acknowledged"])
    end = store.end
    store.write(2, [b"under way"])
    monkeypatch.setattr(payloads, "FileIO", Stuck)
    with pytest.raises(OSError, match="No space"):
        store.back_to(end)
    monkeypatch.undo()
    again = store.write(2, [b"the second try"])
    store.forcing()()
    assert store.read(kept, 12) == b"acknowledged"
    assert store.read(again, 14) == b"the second try"
    store.close()


def test_a_full_database_is_a_full_disk(tmp_path: Path) -> None:
    one = open_journal(tmp_path)
    one._connection.execute("pragma max_page_count = 4")
    with pytest.raises(OSError, match="full") as caught:
        one.append([record(n, os.urandom(8000)) for n in range(1, 9)])
    assert caught.value.errno == errno.ENOSPC
    one._connection.execute("pragma max_page_count = 100000")
    one.append([record(1)])
    assert [r.number for r in one.read()] == [1]
    one.close()


def test_every_commit_is_forced_to_the_disk(tmp_path: Path) -> None:
    one = open_journal(tmp_path)
    try:
        assert one._connection.execute("pragma journal_mode").fetchone() == ("wal",)
        assert one._connection.execute("pragma synchronous").fetchone() == (2,), "FULL"
    finally:
        one.close()


def unwritten(path: Path) -> int | None:
    """Pages of the file that are only in memory; None where the kernel cannot say (cachestat, Linux 6.5)."""
    found = (ctypes.c_uint64 * 5)()
    everything = (ctypes.c_uint64 * 2)(0, 0)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        call = ctypes.CDLL(None, use_errno=True).syscall
        done = call(ctypes.c_long(451), descriptor, everything, found, 0)
    finally:
        os.close(descriptor)
    return None if done != 0 else found[1] + found[2]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel what is only in memory")
@pytest.mark.parametrize("frame", [b"small", LARGE], ids=["row", "file"])
def test_nothing_of_an_appended_record_is_only_in_memory(
    tmp_path: Path, frame: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payloads, "keep_no_copy", lambda descriptor: None)  # it begins to write, and waits for nothing
    probe = tmp_path / "probe"
    probe.write_bytes(LARGE)
    if not unwritten(probe):
        pytest.skip("this kernel or file system does not tell what is only in memory")
    folder = tmp_path / "state"
    folder.mkdir()
    one = open_journal(folder)
    try:
        for number in range(1, 6):
            one.append([record(number, frame)])
            left = {path.name: unwritten(path) for path in folder.iterdir() if not path.name.endswith("-shm")}
            assert not any(left.values()), left
    finally:
        one.close()


def test_a_record_of_another_place_has_another_checksum() -> None:
    assert record(1).sum() != Record(2, "message", b"head 1", (b"small", b"")).sum()
    assert record(1, b"ab", b"c").sum() != record(1, b"a", b"bc").sum()
    assert record(1, struct.pack("<q", 1)).sum() != record(1, struct.pack("<q", 2)).sum()
