"""A state_dir read without a server: the run in it, and its journal told again, as it was or as it might have been.

`tell` feeds the records to the real coordinator and compares every version's mark with the recorded one. A `Tale` is
the same run under other rules or without some of its workers: each update is given to it when it came, with its base
translated to the version that the tale had when the recorded run published that base.

What a tale is not: the updates are those that the workers made from the *recorded* parameters. Under other rules they
would have computed others, so a tale shows what the rules make of the same updates, not how training would have gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_async.config import RunConfig, read_config
from lightning_async.errors import ConfigError
from lightning_async.persistence import Journal, newest, oldest, open_journal
from lightning_async.persistence.journal import exists
from lightning_async.server import recording
from lightning_async.server.actions import Received, Send, Tick
from lightning_async.server.coordinator import Coordinator
from lightning_async.server.private import NOTHING, Private
from lightning_async.server.recording import CHANGE, START, Step
from lightning_async.server.recovery import Recovered, from_snapshot, replay_one
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope


def read_run(folder: Path, private: Private = NOTHING) -> Coordinator:
    """The run in `folder` as it is now, whether a server runs on it or not. Raises ConfigError where there is none."""
    state = from_snapshot(newest(folder), private)
    if exists(folder):
        journal = open_journal(folder, writing=False)
        try:
            for record in journal.read(state.number):
                replay_one(state, record, private)
        finally:
            journal.close()
    if state.coordinator is None:
        raise ConfigError(f"there is no run in {folder}; give the state_dir of one")
    return state.coordinator


def stored_config(folder: Path) -> tuple[RunConfig, str]:
    """The configuration and the name under which the run in `folder` was served last. Raises ConfigError."""
    if exists(folder):
        journal = open_journal(folder, writing=False)
        try:
            found = journal.newest(START)
        finally:
            journal.close()
        if found is not None:
            values = recording.read_step(found).values
            return read_config(values["config"]), str(values["run"])
    snapshot = newest(folder)
    if snapshot is None:
        raise ConfigError(f"there is no run in {folder}; give the state_dir of one")
    return read_config(snapshot.record["config"]), str(snapshot.record["run"])


@dataclass
class Told:
    """A run told again: where it is, how much of it was compared, and the step before."""

    state: Recovered
    step: Step
    receipts: list[m.Receipt] = field(default_factory=list)  # of the last step, at most one


def tell(folder: Path, private: Private = NOTHING, until: int | None = None) -> Iterator[Told]:
    """The run in `folder` from its beginning, or from its oldest snapshot, step by step until version `until`.

    Raises ConfigError where there is no journal, JournalError, SnapshotError.
    """
    journal = open_journal(folder, writing=False)
    try:
        yield from _told(folder, journal, private, until)
    finally:
        journal.close()


def _told(folder: Path, journal: Journal, private: Private, until: int | None) -> Iterator[Told]:
    state = Recovered(None) if journal.first == 1 else from_snapshot(oldest(folder), private)
    if journal.first > state.number + 1:
        raise ConfigError(
            f"the journal in {folder} begins at record {journal.first}: what came before it was forgotten, and no "
            "snapshot from then is left. Serve with --keep-journal from the start of a run that you want to replay"
        )
    for record in journal.read(state.number):
        step = replay_one(state, record, private)
        assert state.coordinator is not None
        yield Told(state, step, _receipts(state.coordinator, step))
        if until is not None and state.coordinator.run.version >= until:
            return


def _receipts(coordinator: Coordinator, step: Step) -> list[m.Receipt]:
    if not isinstance(step.event, Received):
        return []
    sent = [a.envelope.message for a in coordinator.run.actions if isinstance(a, Send) and a.peer == step.event.peer]
    return [message for message in sent if isinstance(message, m.Receipt)]


class Tale:
    """The same run under `changes` of its configuration, and without the updates of some workers.

    `refused` counts what it took less than was recorded. With another staleness, updates that were refused for theirs
    are offered to it too.
    """

    def __init__(self, changes: Mapping[str, Any], without: frozenset[str], private: Private = NOTHING) -> None:
        self._changes, self._without, self._private = dict(changes), without, private
        self._versions: dict[int, int] = {}  # of the recorded run -> of this one
        self._outside: set[bytes] = set()  # peers of workers that are left out
        self.coordinator: Coordinator | None = None
        self.accepted = 0
        self.refused: Counter[str] = Counter()

    def take(self, told: Told) -> None:
        """The next step of the recorded run. Raises ConfigError for changes that cannot work together."""
        step = told.step
        if step.kind == START:
            self._start(step)
        elif isinstance(step.event, Received):
            self._hear(told, step.event)
        elif step.kind == CHANGE:
            self._change(step)
        elif self.coordinator is not None:
            silent = tuple(name for name in step.values.get("silent", ()) if name not in self._without)
            event = Tick(silent) if isinstance(step.event, Tick) else None
            recording.apply(self.coordinator, replace(step, event=event))
        if self.coordinator is not None:
            self._versions[step.version] = self.coordinator.run.version

    def _start(self, step: Step) -> None:
        values = {**step.values["config"], **self._changes}
        if "aggregation" in self._changes and "quorum" not in self._changes:
            values["quorum"] = None  # the recorded one follows from the recorded rule
        private = replace(self._private, secret=step.values["secret"])
        run, run_id = str(step.values["run"]), str(step.values["run_id"])
        self._outside.clear()
        self.coordinator = recording.started(self.coordinator, read_config(values), run, step.now, private, run_id)

    def _change(self, step: Step) -> None:
        """What the owner changed then, but where this tale has another value from the beginning."""
        values = {name: value for name, value in step.values["changes"].items() if name not in self._changes}
        if values and self.coordinator is not None:
            self.coordinator.change(values, step.now)

    def _hear(self, told: Told, event: Received) -> None:
        message, now = event.envelope.message, told.step.now
        if isinstance(message, m.Hello):
            message = replace(message, claims={})
            if message.worker in self._without:
                self._outside.add(event.peer)
        if event.peer in self._outside:
            self._hear_stranger(event, message, now)
        elif isinstance(message, m.Push):
            self._hear_push(told, event, replace(message, units=[]))
        elif not isinstance(message, m.Lease):  # who trained on what is as recorded, so there is nothing to book
            self._give(event, message, now)

    def _hear_stranger(self, event: Received, message: m.Message, now: float) -> None:
        """A worker that is left out may still have been the one who gave the first parameters."""
        assert self.coordinator is not None
        if self.coordinator.run.version < 0 and isinstance(message, (m.Hello, m.Init)):
            self._give(event, message, now)
            if isinstance(message, m.Init):
                self._give(event, m.Leave(why="left out"), now)

    def _hear_push(self, told: Told, event: Received, push: m.Push) -> None:
        assert self.coordinator is not None
        recorded = told.receipts[0] if told.receipts else None
        if recorded is not None and not recorded.accepted and not self._offered_again(recorded, event):
            return
        self.coordinator.handle(Tick(()), told.step.now)  # a grace period may have ended at another time
        base = min(self._versions.get(push.base, self.coordinator.run.version), self.coordinator.run.version)
        for receipt in self._give(event, replace(push, base=base), told.step.now):
            self.accepted += receipt.accepted
            if not receipt.accepted:
                self.refused[receipt.reason] += 1

    def _offered_again(self, receipt: m.Receipt, event: Received) -> bool:
        return receipt.reason == m.Reason.STALE.value and "staleness" in self._changes and event.refused is None

    def _give(self, event: Received, message: m.Message, now: float) -> list[m.Receipt]:
        assert self.coordinator is not None
        envelope = Envelope(event.envelope.id, message, event.envelope.payload)
        sent = [a for a in self.coordinator.handle(Received(event.peer, envelope), now) if isinstance(a, Send)]
        return [a.envelope.message for a in sent if isinstance(a.envelope.message, m.Receipt) and a.peer == event.peer]


def tensors_of(coordinator: Coordinator) -> dict[str, Tensor]:
    """Published parameters and buffers by name. Raises ConfigError for a run that has none yet."""
    store, layout = coordinator.run.store, coordinator.run.layout
    if store is None or layout is None:
        raise ConfigError("the run has no parameters yet")
    named = {entry.name: store.published[entry.range].view(entry.shape) for entry in layout.parameters}
    return named | {entry.name: store.buffers[entry.range].view(entry.shape) for entry in layout.buffers}
