"""The journal: what happened to a run, record after record, each on the disk before anybody is told of it.

`journal.db` is SQLite in WAL mode: one row a record, with its head and a checksum. Payloads of some size stand in files
beside it (payloads.py): SQLite would write them twice, and walk through them once more to delete them
(docs/decisions/0006-payloads-beside-the-journal.md).

What `append` has returned from survives a crash of the machine. What `open_journal` finds behind the last whole commit
is cut off, with a warning. A committed record that does not have its checksum is a JournalError when it is read.

Rule of this file: it knows nothing of runs. A head is bytes; what they mean stands in server/recording.py.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from lightning_async.persistence import tail
from lightning_async.persistence.payloads import Payloads, Place
from lightning_async.persistence.record import JournalError, Record
from lightning_async.wire.frames import flat

NAME = "journal.db"
FORMAT = 1
INLINE_BYTES = 8192  # payloads up to this stand in their row
TABLE = (
    "create table record (number integer primary key, kind text not null, head blob not null, lengths blob not null, "
    "inline blob, segment integer, place integer, sum integer not null)"
)
MIGRATIONS: dict[int, tuple[str, ...]] = {}  # format -> the statements that make the next one of it
Following: TypeAlias = Callable[["Future[None]"], Record | None]
Row = tuple[int, str, bytes, bytes, bytes | None, int | None, int | None, int]
log = logging.getLogger(__name__)


def nothing(forced: Future[None]) -> Record | None:
    """Nothing is known of what follows."""
    return None


def exists(folder: Path) -> bool:
    """Whether there is a journal in `folder`."""
    return (folder / NAME).exists()


def open_journal(
    folder: Path, *, writing: bool = True, start: int = 1, at: Callable[[str], None] = lambda point: None
) -> Journal:
    """The journal in `folder`; made when it is missing and `writing`, with `start` as its first number.

    `at` is told how far an append is, for tests that end the process there. Raises JournalError, OSError.
    """
    path = folder / NAME
    if not writing and not path.exists():
        raise JournalError(f"there is no journal in {folder}: {NAME} is missing. Give the state_dir of a run")
    written = tail.frames(folder / f"{NAME}-wal")
    connection = _connected(path, writing)
    try:
        if writing:
            _prepare(connection, folder)
        _check_format(connection, folder)
        journal = Journal(folder, connection, start, at)
        if writing:
            _, whole, _ = connection.execute("pragma wal_checkpoint(passive)").fetchone()
            journal.cut_tail(tail.lost(written, whole))
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise _unusable(folder, error) from error
        raise
    return journal


class Journal:
    """An open journal: `first` and `last` are the numbers of its records; last = first - 1 while it is empty.

    Its calls come from one thread at a time. Made by `open_journal`.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, start: int, at: Callable[[str], None]) -> None:
        self._folder, self._connection, self._at = folder, connection, at
        ends = "select (select min(number) from record), (select max(number) from record)"  # two look-ups, not a scan
        low, high = connection.execute(ends).fetchone()
        self.first: int = start if low is None else low
        self.last: int = self.first - 1 if high is None else high
        self._payloads = Payloads(folder)
        self._ahead: dict[int, Row] = {}  # of records whose payload is written before their turn
        self._thread = ThreadPoolExecutor(1, "lightning-async-disk")

    def append(self, records: Sequence[Record], following: Following = nothing) -> None:
        """Keep `records`, all or none; they are on the disk afterwards.

        `following` gives the records that come after them, one by one and None when these are there: meanwhile the
        payloads of those are written, since a disk that only waits for a commit has nothing to do.

        Raises OSError, also for what SQLite says of the disk; then none is there, and it may be tried again.
        """
        try:
            rows = [self._ahead.pop(r.number) if r.number in self._ahead else self._stored(r) for r in records]
            self._at("journal.written")
            kept = self._thread.submit(self._keep, rows, self._payloads.forcing())
            self._write_ahead(kept, following)
            kept.result()
        except (OSError, sqlite3.Error) as error:
            self._ahead.clear()
            with suppress(OSError, sqlite3.Error):
                self._payloads.back_to(self._newest_payload())
            raise error if isinstance(error, OSError) else _of_disk(error) from error
        self.last = records[-1].number
        self._at("journal.committed")

    def _keep(self, rows: Sequence[Row], force: Callable[[], None]) -> None:
        force()
        self._at("journal.synced")
        self._commit(rows)

    def _write_ahead(self, kept: Future[None], following: Following) -> None:
        """Write the payloads that `following` gives. One that cannot be written will say so in its turn."""
        with suppress(OSError):
            while (record := following(kept)) is not None:
                self._ahead[record.number] = self._stored(record)

    def read(self, after: int = 0) -> Iterator[Record]:
        """The records with greater numbers, in order. Raises JournalError at one that is damaged or missing."""
        expected = after + 1
        try:
            for row in self._connection.execute("select * from record where number > ? order by number", (after,)):
                if row[0] != expected:
                    break
                yield self._read(row)
                expected += 1
        except sqlite3.Error as error:
            raise _unusable(self._folder, error) from error
        if expected <= self.last:
            raise self._damaged(expected, "it is not there")

    def newest(self, kind: str) -> Record | None:
        """The last record of this kind. Raises JournalError when it is damaged."""
        latest = "select * from record where kind = ? order by number desc limit 1"
        try:
            row = self._connection.execute(latest, (kind,)).fetchone()
        except sqlite3.Error as error:
            raise _unusable(self._folder, error) from error
        return None if row is None else self._read(row)

    def prune(self, up_to: int) -> None:
        """Forget the records up to `up_to`, but the last. Raises OSError."""
        up_to = min(up_to, self.last - 1)
        if up_to < self.first:
            return
        try:
            self._connection.execute("delete from record where number <= ?", (up_to,))
        except sqlite3.Error as error:
            raise _of_disk(error) from error
        self._at("journal.pruned")
        self.first = up_to + 1
        self._payloads.forget_before(self.first)

    def cut_after(self, number: int) -> int:
        """Forget what came after record `number`, acknowledged or not; how many records that were."""
        gone = max(0, self.last - number)
        self._connection.execute("delete from record where number > ?", (number,))
        self.last -= gone
        self._payloads.back_to(self._newest_payload())
        return gone

    def cut_tail(self, lost: tail.Lost) -> None:
        """Remove what a crash has left behind the last commit; a warning says what that was."""
        if lost.commits > 1:
            raise JournalError(
                f"{lost} in {self._folder} cannot be read, and {lost.commits} commits stand in them: {NAME}-wal was "
                "damaged after it was written, and acknowledged updates are in it. Put a copy of the folder back, or "
                f"delete {NAME}-wal to go on without them"
            )
        left = self._payloads.back_to(self._newest_payload())
        if left or lost.frames:
            log.warning(
                "the server died while it wrote after record %d: dropped %d bytes of payload and %s, which nobody was "
                "told of; everything that was acknowledged is there",
                self.last,
                left,
                lost,
            )

    def close(self) -> None:
        """Let go of the files. Idempotent."""
        self._thread.shutdown()
        self._connection.close()
        self._payloads.close()

    def _commit(self, rows: Sequence[Row]) -> None:
        self._connection.execute("begin immediate")
        try:
            self._connection.executemany("insert into record values (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._at("journal.inserted")
            self._connection.execute("commit")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("rollback")
            raise

    def _stored(self, record: Record) -> Row:
        """The row of `record`, whose payload is written by now, though not forced."""
        frames = [flat(frame) for frame in record.frames]
        lengths = struct.pack(f"<{len(frames)}q", *map(len, frames))
        front = (record.number, record.kind, record.head, lengths)
        if sum(map(len, frames)) <= INLINE_BYTES:
            return (*front, b"".join(frames), None, None, record.sum())
        place = self._payloads.write(record.number, frames)
        return (*front, None, place.segment, place.start, record.sum())

    def _newest_payload(self) -> Place:
        """Behind the last payload that a record names."""
        found = self._connection.execute(
            "select segment, place, lengths from record where segment is not null order by number desc limit 1"
        ).fetchone()
        return Place() if found is None else Place(found[0], found[1] + sum(_lengths(found[2])))

    def _read(self, row: Row) -> Record:
        number, kind, head, packed, body, segment, start, expected = row
        lengths = _lengths(packed)
        try:
            if segment is not None and start is not None:
                body = self._payloads.read(Place(segment, start), sum(lengths))
        except OSError as error:
            raise self._damaged(number, str(error)) from error
        view, frames = memoryview(body or b""), []
        for length in lengths:
            frames.append(view[:length])
            view = view[length:]
        record = Record(number, kind, head, tuple(frames))
        if len(view) or record.sum() != expected:
            raise self._damaged(number, "it does not have the checksum that it was written with")
        return record

    def _damaged(self, number: int, why: str) -> JournalError:
        return JournalError(
            f"record {number} of {self._folder / NAME} cannot be read: {why}. It was acknowledged, and so were the "
            f"{max(0, self.last - number)} after it. Put a copy of the folder back, or give them up: "
            f"lightning-async resume --state {self._folder} --cut {number - 1}"
        )


def _connected(path: Path, writing: bool) -> sqlite3.Connection:
    try:
        if writing:
            return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise _unusable(path.parent, error) from error


def _prepare(connection: sqlite3.Connection, folder: Path) -> None:
    """WAL, every commit forced to the disk, and the tables of FORMAT."""
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    known = connection.execute("pragma user_version").fetchone()[0]
    steps = (TABLE,) if known == 0 else tuple(step for n in range(known, FORMAT) for step in MIGRATIONS[n])
    if steps:
        connection.execute("begin immediate")
        for step in steps:
            connection.execute(step)
        connection.execute(f"pragma user_version = {FORMAT}")
        connection.execute("commit")
    if 0 < known < FORMAT:
        log.warning("the journal in %s was of format %d and is of format %d now", folder, known, FORMAT)


def _check_format(connection: sqlite3.Connection, folder: Path) -> None:
    known = connection.execute("pragma user_version").fetchone()[0]
    if known != FORMAT:
        raise JournalError(
            f"{folder / NAME} has format {known}; this version reads {FORMAT}. "
            + ("Update the package" if known > FORMAT else "Start a server on it once, which brings it up to date")
        )


def _lengths(packed: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(packed) // 8}q", packed)


def _of_disk(error: sqlite3.Error) -> OSError:
    """What SQLite could not write, as the system would have said it."""
    full = "full" in str(error)
    return OSError(errno.ENOSPC if full else errno.EIO, str(error))


def _unusable(folder: Path, error: sqlite3.Error) -> JournalError:
    return JournalError(
        f"{folder / NAME} cannot be used: {error}. Look at the folder's permissions, space and disk. Where the file "
        f"itself is damaged, put a copy of the folder back, or move {NAME} and its companions away to go on from the "
        "newest snapshot: what was acknowledged after it is lost then"
    )
