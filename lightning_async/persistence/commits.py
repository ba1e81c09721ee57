"""Group commit: a thread that takes what has been submitted since its last commit, all of it, and makes it durable.

Nobody waits for a timer: while one group is being forced to the disk the next one gathers, so that its size follows
from how busy the run is. A disk that takes nothing (full, gone read-only) pauses the run rather than ending it: what
was submitted stays, is tried again, and meanwhile nobody is told of it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from lightning_async.persistence.journal import Journal
from lightning_async.persistence.record import Record

RETRY_S = 1.0
MOST_WAITING_BYTES = 2**28  # submitted and not durable; then no more is taken
LAST_TRY_S = 5.0  # how long `close` goes on trying
log = logging.getLogger(__name__)


class Commits:
    """Commits to `journal`, which from now on belongs to this object's thread.

    `told` is called from that thread when `durable` has grown, or never will again.
    """

    def __init__(self, journal: Journal, retry_s: float = RETRY_S) -> None:
        self._journal, self._retry_s = journal, retry_s
        self.told: Callable[[], None] = lambda: None
        self.durable = self.submitted = journal.last
        self.trouble = ""  # why nothing can be written now
        self._waiting: deque[Record] = deque()
        self._waiting_bytes = 0
        self._forget = 0
        self._closing: float | None = None
        self._failed: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lightning-async-journal", daemon=True)
        self._thread.start()

    def submit(self, record: Record) -> None:
        """Have `record` written; it is durable once `durable` has reached its number. Raises what broke the thread."""
        self.check()
        with self._changed:
            self._waiting.append(record)
            self._waiting_bytes += record.bytes
            self.submitted = record.number
            self._changed.notify_all()

    def check(self) -> None:
        """Raise what broke the thread, if anything did."""
        if self._failed is not None:
            raise RuntimeError("the journal's thread has failed") from self._failed

    @property
    def has_room(self) -> bool:
        """Whether more should be submitted now."""
        return not self.trouble and self._waiting_bytes <= MOST_WAITING_BYTES

    def wait(self, number: int, timeout_s: float) -> bool:
        """Wait until record `number` is durable; False when it is not by then, or never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self.durable >= number or not self._thread.is_alive(), timeout_s)
            return self.durable >= number

    def prune(self, up_to: int) -> None:
        """Have the records up to `up_to` forgotten."""
        with self._changed:
            self._forget = max(self._forget, up_to)
            self._changed.notify_all()

    def close(self) -> None:
        """Commit what was submitted, end the thread and close the journal. Idempotent.

        What a full disk still does not take after a while is dropped, with an error in the log: nobody was told of it.
        """
        with self._changed:
            self._closing = time.monotonic() + LAST_TRY_S if self._closing is None else self._closing
            self._changed.notify_all()
        self._thread.join()
        self._journal.close()
        if self._waiting:
            log.error(
                "%d events are not in the journal, and nobody was told of them: %s", len(self._waiting), self._why
            )
            self._waiting.clear()

    @property
    def _why(self) -> str:
        return repr(self._failed) if self._failed is not None else self.trouble

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            log.exception("the journal's thread failed; nothing is acknowledged any more")
            self._failed, self.trouble = error, repr(error)
            self.told()

    def _turn(self) -> bool:
        """One group; False when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._forget or self._closing is not None)
            group, forget = list(self._waiting), self._forget
            if not group and not forget:
                return False
            self._forget = 0
        try:
            if group:
                self._journal.append(group, self._following(len(group)))
                self._settle(group)
        except OSError as error:
            self._forget = max(self._forget, forget)
            return self._pause(error)
        if forget:
            self._prune(forget)
        return True

    def _following(self, count: int) -> Callable[[Future[None]], Record | None]:
        """What gives the records behind the first `count` that wait, until the disk has what it is forcing."""
        places = itertools.count(count)

        def following(forced: Future[None]) -> Record | None:
            place = next(places)
            if place == count:
                forced.add_done_callback(lambda _: self._notify())
            with self._changed:
                self._changed.wait_for(lambda: forced.done() or len(self._waiting) > place)
                return None if forced.done() else self._waiting[place]

        return following

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _prune(self, forget: int) -> None:
        """What fails here costs room and nothing else, so it does not pause the run."""
        try:
            self._journal.prune(forget)
        except OSError as error:
            log.warning("the journal cannot be shortened: %s; tried again after the next snapshot", error)

    def _settle(self, group: list[Record]) -> None:
        with self._changed:
            for record in group:
                self._waiting.popleft()
                self._waiting_bytes -= record.bytes
            if self.trouble:
                log.warning("the journal can be written again; the run goes on")
            self.trouble = ""
            self.durable = self._journal.last
            self._changed.notify_all()
        self.told()

    def _pause(self, error: OSError) -> bool:
        """Wait before the next try; False when there is to be none."""
        if not self.trouble:
            log.error(
                "the journal cannot be written: %s. The run is paused: nothing is acknowledged, and workers go on by "
                "themselves for a while. Make room on the disk, or make it writable again; it is tried every %.0f s",
                error.strerror,
                self._retry_s,
            )
        self.trouble = error.strerror or str(error)
        with self._changed:
            closing = self._closing is not None
            self._changed.wait_for(lambda: self._closing is not None and not closing, self._retry_s)
            return self._closing is None or time.monotonic() < self._closing
