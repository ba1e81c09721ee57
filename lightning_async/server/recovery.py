"""A run out of its state_dir: the newest whole snapshot, and the journal after it, through the real coordinator.

The result is the run that the server had when it died, bit for bit, with everything that anybody was told of. Each
version's mark (Store.mark) is compared with the recorded one. Where they differ, this machine computes differently from
the one that wrote the journal: the updates are all there, and the run goes on, but every worker gets a whole snapshot,
since what it holds under a version's number is not what this server would call so.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from lightning_async.config import RunConfig, read_config
from lightning_async.errors import AsyncWANError
from lightning_async.persistence import Commits, Journal, JournalError, Record, Snapshot, newest, open_journal
from lightning_async.persistence.journal import NAME
from lightning_async.server import recording
from lightning_async.server.coordinator import Coordinator
from lightning_async.server.private import NOTHING, Private
from lightning_async.server.recorder import Recorder
from lightning_async.server.recording import Step
from lightning_async.server.rules import canonical

At: TypeAlias = Callable[[str], None]
log = logging.getLogger(__name__)


@dataclass
class Recovered:
    """The state that was found. `number` is the last record in it."""

    coordinator: Coordinator | None
    number: int = 0
    differing: str = ""  # where the run was first seen to be another one than was recorded
    verified: int = 0  # versions whose mark was compared
    machine: dict[str, Any] | None = None  # that wrote the last records


def from_snapshot(snapshot: Snapshot | None, private: Private = NOTHING) -> Recovered:
    """The run of a snapshot, for the records after it."""
    if snapshot is None:
        return Recovered(None)
    record, config = snapshot.record, read_config(snapshot.record["config"])
    if "live" not in record:  # written by a version that had no journal
        return Recovered(Coordinator.restored(config, record, snapshot.tensors, private))
    number, private = int(record["journal"]), replace(private, secret=record["secret"])
    return Recovered(Coordinator.continued(config, record, snapshot.tensors, private), number)


def caught_up(state: Recovered, folder: Path, journal: Journal, private: Private = NOTHING) -> Recovered:
    """The run as its last server left it: a snapshot's, or none, and the journal after it. Raises JournalError."""
    if state.number and (journal.last < state.number or journal.last < journal.first):
        log.warning(
            "the journal in %s ends at record %d and the newest snapshot was taken after record %d: whatever was "
            "acknowledged after that is lost. Was %s removed?",
            folder,
            journal.last,
            state.number,
            NAME,
        )
    for row in journal.read(state.number):
        replay_one(state, row, private)
    return state


def replay_one(state: Recovered, row: Record, private: Private = NOTHING) -> Step:
    """Apply one record to `state`. Raises JournalError for one that cannot be applied."""
    try:
        step = recording.read_step(row)
        state.coordinator = recording.apply(state.coordinator, step, private)
    except (AsyncWANError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise JournalError(
            f"record {row.number} of the journal ({row.kind}) cannot be applied: {error!r}. Was it written by "
            "another version of this package? Serve the run with that one once and stop it: this leaves a "
            "snapshot, and nothing in the journal that is needed"
        ) from error
    state.number = step.number
    state.machine = step.values.get("machine", state.machine)
    _verify(state, step)
    return step


def _verify(state: Recovered, step: Step) -> None:
    run = state.coordinator.run if state.coordinator is not None else None
    if run is None or state.differing:
        return
    mark = run.store.mark() if step.mark is not None and run.store is not None else None
    state.verified += mark is not None
    if run.version != step.version or mark != step.mark:
        state.differing = (
            f"record {step.number}: version {run.version}, recorded is {step.version}, mark {mark} / {step.mark}"
        )


def recorded(
    config: RunConfig,
    run: str,
    folder: Path,
    now: float,
    private: Private = NOTHING,
    run_id: str = "",
    at: At = lambda point: None,
    keeps: bool = False,
) -> Recorder:
    """The run in `folder`, or a new one with name `run` and `run_id`, going on under `config` and recorded from now on.

    `keeps`: as `Recorder`.
    Raises ConfigError, with all differences, for another configuration; SnapshotError, JournalError; OSError.
    """
    snapshot = newest(folder)
    before = from_snapshot(snapshot, private)
    journal = open_journal(folder, start=before.number + 1, at=at)
    try:
        state = caught_up(before, folder, journal, private)
        coordinator = recording.started(state.coordinator, config, run, now, private, run_id)
        if state.differing:
            _warn(state, folder)
            coordinator.run.restored_at = -1
        journal.append([_start(max(journal.last, state.number) + 1, coordinator, config, now)])
    except BaseException:
        journal.close()
        raise
    return Recorder(coordinator, Commits(journal), keeps)


def _warn(state: Recovered, folder: Path) -> None:
    log.error(
        "replaying the journal in %s gives other parameters than its server had (%s). All updates are there; this "
        "machine (%s) computes their last bits differently from the one that wrote it (%s). Every worker gets whole "
        "parameters",
        folder,
        state.differing,
        machine(),
        state.machine or "not known",
    )


def _start(number: int, coordinator: Coordinator, given: RunConfig, now: float) -> Record:
    """What a server writes before it serves: its configuration as it was given, without what was changed later."""
    run = coordinator.run
    values: dict[str, Any] = {
        "config": canonical(given).as_dict(),
        "run": run.name,
        "run_id": run.id,
        "secret": run.rules.private.secret,
        "machine": machine(),
        "clock": time.time(),
    }
    return recording.plain_record(number, recording.START, now, values, {"version": run.version})


def machine() -> dict[str, Any]:
    """What the last bits of a computation may depend on."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }
