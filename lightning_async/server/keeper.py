"""Keeps a run's snapshots: one now and then, when the run ends, and when the service closes.

The state is copied in the service's thread, between two messages; hashing and writing happen in a thread beside it, so
that a slow disk delays nobody. A snapshot that cannot be written is an error in the log, and is tried again. Beside a
journal a snapshot says which record it was taken after, is written once that record is durable, and lets the journal
forget what no kept snapshot needs.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_async.keeping import SNAPSHOT_EVERY_S
from lightning_async.persistence import Commits, Snapshot, journal_needed_after, write
from lightning_async.server import live, memory
from lightning_async.server.run import Run

DURABLE_S = 0.5  # how often a snapshot that waits for its last record looks whether anybody still wants it
log = logging.getLogger(__name__)


class Keeper:
    """Snapshots of one run in `folder`, while anything changes.

    Args:
        every_s: seconds from one snapshot to the next.
        every_versions: versions from one snapshot to the next, if that comes first.
        commits: of the run's journal; `prunes` says whether it may forget what the snapshots hold.
    """

    def __init__(
        self,
        folder: Path,
        every_s: float = SNAPSHOT_EVERY_S,
        store: Callable[[Path, Snapshot], Path] = write,
        *,
        every_versions: int | None = None,
        commits: Commits | None = None,
        prunes: bool = True,
    ) -> None:
        self._folder, self._every_s, self._every_versions, self._write = folder, every_s, every_versions, store
        self._commits, self._prunes = commits, prunes
        self._next: float | None = None
        self._version: int | None = None  # of the run when the last one was begun
        self._stored: Any = None  # the marks of the newest snapshot
        self._ended = self._closing = False
        self._thread: threading.Thread | None = None

    def look(self, run: Run, now: float) -> None:
        """Begin a snapshot of `run` if it is time for one; returns soon."""
        self._next = now + self._every_s if self._next is None else self._next
        self._version = run.version if self._version is None else self._version
        if self._due(run, now) and not self._writing and self._marks(run) != self._stored:
            self._next, self._ended, self._version = now + self._every_s, bool(run.ended), run.version
            self._begin(run)

    def hurry(self) -> None:
        """Begin a snapshot at the next look, if anything has changed."""
        self._next = -math.inf

    def close(self, run: Run) -> None:
        """Write a last snapshot of what has changed since; it is on disk afterwards, or the log says why not."""
        self._closing = True
        self._wait()
        if self._marks(run) != self._stored:
            self._begin(run)
            self._wait()

    def _due(self, run: Run, now: float) -> bool:
        assert self._next is not None
        assert self._version is not None
        many = self._every_versions is not None and run.version - self._version >= self._every_versions
        return now >= self._next or many or (bool(run.ended) and not self._ended)

    @property
    def _writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _begin(self, run: Run) -> None:
        number = None if self._commits is None else self._commits.submitted
        snapshot, marks = taken(run, number), self._marks(run)
        self._wait()
        self._thread = threading.Thread(
            target=self._store, args=(snapshot, marks, number), name="lightning-async-keeper"
        )
        self._thread.start()

    def _store(self, snapshot: Snapshot, marks: Any, number: int | None) -> None:
        try:
            self._wait_for_journal(number)
            log.debug("wrote %s", self._write(self._folder, snapshot))
            self._stored = marks
            if self._commits is not None and self._prunes:
                self._commits.prune(journal_needed_after(self._folder))
        except Exception:
            log.exception("no snapshot could be written to %s; the run goes on and it is tried again", self._folder)

    def _wait_for_journal(self, number: int | None) -> None:
        """A snapshot must not know of what the journal may still lose: it was not acknowledged."""
        while self._commits is not None and number is not None and not self._commits.wait(number, DURABLE_S):
            if self._closing:
                raise OSError(f"record {number} of the journal is not on the disk: {self._commits.trouble}")

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _marks(self, run: Run) -> Any:
        """Changes whenever something that was acknowledged has changed."""
        if self._commits is not None:
            return self._commits.submitted
        sequence = sum(member.last_seq for member in run.members)
        places = tuple((name, ledger.position, ledger.applied) for name, ledger in run.streams.items())
        return run.version, run.steps_total, sequence, places, len(run.shared)


def taken(run: Run, number: int | None) -> Snapshot:
    """The state of `run` after record `number` of its journal."""
    record, tensors = memory.dump(run)
    if number is not None:
        record |= {"journal": number, "secret": run.rules.private.secret, "live": live.dump(run)}
    return Snapshot(record, tensors)
