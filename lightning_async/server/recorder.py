"""A coordinator whose events are recorded: the same calls, the same actions, and a record of what changed the run.

`submitted` is the number of the last record, and `durable` that of the last one on the disk. Who performs the actions
(service.py) holds them back until all that was submitted before them is durable: so nobody is told of anything that a
crash could undo, neither of his own update nor of a version that came of another's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_async.errors import ConfigError
from lightning_async.persistence import Commits, Record
from lightning_async.server import recording
from lightning_async.server.actions import Action, Event, Received, Tick
from lightning_async.server.coordinator import Coordinator
from lightning_async.server.recording import Watch
from lightning_async.wire.messages import Pardon, Reason

SLICE_S = 0.5


class Recorder:
    """Wraps `coordinator`, whose run is at the journal's end, and records to `commits`, which it owns.

    `keeps`: updates that were refused for their staleness are recorded with their bytes, for a replay under another
    bound; of all others that were refused the receipt is enough.
    """

    def __init__(self, coordinator: Coordinator, commits: Commits, keeps: bool = False) -> None:
        self.coordinator, self.commits, self._keeps = coordinator, commits, keeps

    @property
    def submitted(self) -> int:
        return self.commits.submitted

    @property
    def durable(self) -> int:
        return self.commits.durable

    @property
    def has_room(self) -> bool:
        """Whether the journal takes more."""
        return self.commits.has_room

    def wait(self, timeout_s: float) -> None:
        """Until what was submitted is durable, or the time is over. Raises what broke the journal's thread."""
        self.commits.check()
        self.commits.wait(self.submitted, timeout_s)

    def settle(self) -> None:
        """Give a journal that works the time to write what was submitted."""
        while not self.commits.trouble and not self.commits.wait(self.submitted, SLICE_S):
            pass

    def close(self) -> None:
        """Write what can be written, and close the journal. Idempotent."""
        self.commits.close()

    def handle(self, event: Event, now: float) -> list[Action]:
        """As `Coordinator.handle`."""
        if isinstance(event, Tick):
            event = Tick(self.coordinator.silent(now))
        run = self.coordinator.run
        watch, header = Watch(run, event), recording.header_of(event)
        try:
            actions = self.coordinator.handle(event, now)
        except Exception:
            if watch.changed(run, None):
                self._record_event(event, header, now, watch.version, broke=True)
            raise
        if watch.changed(run, actions):
            self._record_event(event, header, now, watch.version)
        return actions

    def stop(self, why: str, now: float) -> list[Action]:
        """As `Coordinator.stop`."""
        version = self.coordinator.run.version
        actions = self.coordinator.stop(why, now)
        self._record(recording.STOP, now, {"why": why}, version)
        return actions

    def pardon(self, worker: str, now: float) -> list[Action]:
        """As `Coordinator.pardon`."""
        version = self.coordinator.run.version
        actions = self.coordinator.pardon(worker, now)
        self._record(recording.PARDON, now, {"worker": worker}, version)
        return actions

    def change(self, values: Mapping[str, Any], now: float) -> list[Action]:
        """As `Coordinator.change`."""
        version = self.coordinator.run.version
        try:
            actions = self.coordinator.change(values, now)
        except ConfigError:
            raise
        except Exception:
            self._record(recording.CHANGE, now, {"changes": dict(values), "broke": True}, version)
            raise
        self._record(recording.CHANGE, now, {"changes": dict(values)}, version)
        return actions

    def expel(self, names: Sequence[str], why: str, now: float) -> list[Action]:
        """As `Coordinator.expel`."""
        version = self.coordinator.run.version
        actions = self.coordinator.expel(names, why, now)
        self._record(recording.EXPEL, now, {"names": list(names), "why": why}, version)
        return actions

    def _record_event(self, event: Event, header: bytes, now: float, version: int, broke: bool = False) -> None:
        if isinstance(event, Received) and isinstance(event.envelope.message, Pardon):
            self._record(recording.PARDON, now, {"worker": event.envelope.message.worker}, version)  # not its token
        elif isinstance(event, Received):
            receipt = recording.refused_in(self.coordinator.run, event)
            if receipt is not None and not (self._keeps and receipt.reason == Reason.STALE.value):
                event = recording.without_payload(event, receipt)
                header = recording.header_of(event)
            after = recording.after(self.coordinator.run, version) | ({"values": {"broke": True}} if broke else {})
            self._submit(recording.message_record(self.submitted + 1, event, header, now, after))
        elif isinstance(event, Tick):
            self._record(recording.TICK, now, {"silent": list(event.silent or ()), "broke": broke}, version)

    def _record(self, kind: str, now: float, values: dict[str, Any], version: int) -> None:
        after = recording.after(self.coordinator.run, version)
        self._submit(recording.plain_record(self.submitted + 1, kind, now, values, after))

    def _submit(self, record: Record) -> None:
        self.commits.submit(record)
