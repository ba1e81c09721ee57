"""Keeps a run on disk: a snapshot now and then, when the run ends, and when the service closes.

The state is copied in the service's thread, between two messages; hashing and writing happen in a thread beside it, so
that a slow disk delays nobody. A snapshot that cannot be written is an error in the log, and is tried again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_async.persistence import Snapshot, write
from lightning_async.server import memory
from lightning_async.server.run import Run

EVERY_S = 30.0
log = logging.getLogger(__name__)


class Keeper:
    """Snapshots of one run in `folder`, every `every_s` seconds while anything changes."""

    def __init__(self, folder: Path, every_s: float = EVERY_S, store: Callable[[Path, Snapshot], Path] = write) -> None:
        self._folder, self._every_s, self._write = folder, every_s, store
        self._next: float | None = None
        self._stored: Any = None  # the marks of the newest snapshot
        self._ended = False
        self._thread: threading.Thread | None = None

    def look(self, run: Run, now: float) -> None:
        """Begin a snapshot of `run` if it is time for one; returns soon."""
        self._next = now + self._every_s if self._next is None else self._next
        due = now >= self._next or (bool(run.ended) and not self._ended)
        if due and not self._writing and self._marks(run) != self._stored:
            self._next, self._ended = now + self._every_s, bool(run.ended)
            self._begin(run)

    def close(self, run: Run) -> None:
        """Write a last snapshot of what has changed since; it is on disk afterwards, or the log says why not."""
        self._wait()
        if self._marks(run) != self._stored:
            self._begin(run)
            self._wait()

    @property
    def _writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _begin(self, run: Run) -> None:
        snapshot, marks = Snapshot(*memory.dump(run)), self._marks(run)
        self._wait()
        self._thread = threading.Thread(target=self._store, args=(snapshot, marks), name="lightning-async-keeper")
        self._thread.start()

    def _store(self, snapshot: Snapshot, marks: Any) -> None:
        try:
            log.debug("wrote %s", self._write(self._folder, snapshot))
            self._stored = marks
        except Exception:
            log.exception("no snapshot could be written to %s; the run goes on and it is tried again", self._folder)

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _marks(self, run: Run) -> Any:
        """Changes whenever something that was acknowledged has changed."""
        sequence = sum(member.last_seq for member in run.members)
        places = tuple((name, stream.position) for name, stream in run.streams.items())
        return run.version, run.steps_total, sequence, places, len(run.shared)
