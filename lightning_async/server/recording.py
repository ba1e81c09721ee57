"""What of a run is recorded, and how a record is applied again.

The coordinator is a pure state machine, so its inputs are the run: the events that change its state, each with the time
that it was given. Recorded are messages that were done and change something (joining, leaving, first parameters, every
update with its bytes, accepted or refused, leases, shared values, optimizer states), ticks in which something happened,
with who was found silent, and what the owner decided. Of a refused update the receipt stands in the place of the bytes:
a member could fill the disk with those. Not recorded are questions, beats, and requests that were refused without a
receipt: they change counters only, and a stranger could fill the disk with them.

Rule of this file: an event is looked at before and after it is handled, never inside; what the same events lead to is
the coordinator's business alone. `start` records stand where a server began: its members were away, its configuration
may have changed where that is free, and replaying them does what restoring a snapshot does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgpack

from lightning_async.config import RunConfig, read_config
from lightning_async.persistence import Record
from lightning_async.server import changing, leasing, memory
from lightning_async.server.actions import Action, Emit, Event, Received, Send, Tick
from lightning_async.server.coordinator import Coordinator
from lightning_async.server.private import NOTHING, Private
from lightning_async.server.run import Run
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, unpack

START, MESSAGE, TICK, STOP, PARDON, EXPEL = "start", "message", "tick", "stop", "pardon", "expel"
CHANGE = "change"
CHANGING = (m.Hello, m.Init, m.Push, m.Leave, m.Lease, m.Share, m.Load, m.Pardon)


@dataclass(frozen=True)
class Step:
    """A record, read: what it was, when, and what the run was at after it."""

    number: int
    kind: str
    now: float
    values: Mapping[str, Any]
    event: Event | None  # of a message or a tick
    version: int
    mark: int | None  # of the published parameters (Store.mark), where the version is new


class Watch:
    """How a run was before an event, and whether the event has changed what is recorded."""

    def __init__(self, run: Run, event: Event) -> None:
        self._event = event
        self.version = run.version
        self._times = _times(run)
        self._known = _known(run, event)

    def changed(self, run: Run, actions: list[Action] | None) -> bool:
        """`actions`: what followed; None when the coordinator broke, and half of it may be done."""
        event = self._event
        if isinstance(event, Tick):
            told = actions is None or any(isinstance(action, Emit) for action in actions)
            return told or self.version != run.version or self._times != _times(run)
        if not isinstance(event, Received) or not isinstance(event.envelope.message, CHANGING) or self._known:
            return False
        return actions is None or not _refused(event, actions)


def _known(run: Run, event: Event) -> bool:
    """Whether the event asks for what has been done already."""
    if not isinstance(event, Received):
        return False
    message, member = event.envelope.message, run.members.of(event.peer)
    if isinstance(message, m.Push):
        return member is not None and message.seq in member.receipts
    if isinstance(message, m.Share):
        return message.value is None or message.key in run.shared
    return isinstance(message, m.Init) and run.version >= 0


def _refused(event: Received, actions: list[Action]) -> bool:
    return any(
        isinstance(action, Send)
        and action.peer == event.peer
        and action.envelope.id == event.envelope.id
        and isinstance(action.envelope.message, m.Refused)
        for action in actions
    )


def _times(run: Run) -> tuple[float | None, ...]:
    return () if run.stepper is None else tuple(buffer.complete_at for buffer in run.stepper.waiting)


def header_of(event: Event) -> bytes:
    """The header of a message that may have to be recorded, empty for anything else. Raises CallerError for one that
    cannot be: it has to be made before the message changes anything."""
    if not isinstance(event, Received) or not isinstance(event.envelope.message, CHANGING):
        return b""
    _, header, *_ = pack(event.envelope, sums=[0] * len(event.envelope.payload))  # the journal has sums of its own
    return bytes(header)


def refused_in(run: Run, event: Received) -> m.Receipt | None:
    """The receipt of a Push that was handled just now and refused; None of anything else."""
    message, member = event.envelope.message, run.members.of(event.peer)
    receipt = member.receipts.get(message.seq) if isinstance(message, m.Push) and member is not None else None
    return None if receipt is None or receipt.accepted else receipt


def without_payload(event: Received, receipt: m.Receipt) -> Received:
    """The same refused Push, without anything whose length its sender chooses: a replay needs its numbers only."""
    push = event.envelope.message
    assert isinstance(push, m.Push)
    units = push.units if len(push.units) <= leasing.MOST_NOTED else []
    push = replace(push, digest="", present=None, hyper=[], units=units)
    return Received(event.peer, Envelope(event.envelope.id, push), receipt)


def message_record(number: int, event: Received, header: bytes, now: float, after: Mapping[str, Any]) -> Record:
    """The record of a message that was handled at `now`."""
    head = {"now": now, "peer": event.peer, "wire": header, **after}
    if event.refused is not None:
        head["refused"] = asdict(event.refused)
    return Record(number, MESSAGE, msgpack.packb(head), event.envelope.payload, event.envelope.sums)


def plain_record(number: int, kind: str, now: float, values: Mapping[str, Any], after: Mapping[str, Any]) -> Record:
    """The record of anything else."""
    return Record(number, kind, msgpack.packb({"now": now, "values": dict(values), **after}))


def after(run: Run, before: int) -> dict[str, Any]:
    """What a record says of the run after it, which was at version `before`."""
    if run.version == before or run.store is None:
        return {"version": run.version}
    return {"version": run.version, "mark": run.store.mark()}


def read_step(record: Record) -> Step:
    """What a record says. Raises JournalError's cousins ValueError and ProtocolError for one that was never written."""
    head = msgpack.unpackb(record.head, strict_map_key=False)
    event: Event | None = None
    if record.kind == MESSAGE:
        refused = m.Receipt(**head["refused"]) if "refused" in head else None
        event = Received(head["peer"], unpack([b"", head["wire"], *record.frames], verify=False), refused)
    elif record.kind == TICK:
        event = Tick(tuple(head["values"]["silent"]))
    values = head.get("values", {})
    return Step(record.number, record.kind, head["now"], values, event, head["version"], head.get("mark"))


def apply(coordinator: Coordinator | None, step: Step, private: Private = NOTHING) -> Coordinator:
    """The coordinator after `step`; None before the first `start`."""
    if step.kind == START:
        if coordinator is None and step.version >= 0:
            raise ValueError("the run began before this record, and no snapshot from before it is here")
        config, private = read_config(step.values["config"]), replace(private, secret=step.values["secret"])
        return started(coordinator, config, str(step.values["run"]), step.now, private, str(step.values["run_id"]))
    assert coordinator is not None
    try:
        _ACTS[step.kind](coordinator, step)
    except Exception:
        if not step.values.get("broke"):
            raise
    return coordinator


_ACTS: dict[str, Callable[[Coordinator, Step], object]] = {
    MESSAGE: lambda coordinator, step: coordinator.handle(_event(step), step.now),
    TICK: lambda coordinator, step: coordinator.handle(_event(step), step.now),
    STOP: lambda coordinator, step: coordinator.stop(str(step.values["why"]), step.now),
    PARDON: lambda coordinator, step: coordinator.pardon(str(step.values["worker"]), step.now),
    CHANGE: lambda coordinator, step: coordinator.change(step.values["changes"], step.now),
    EXPEL: lambda coordinator, step: coordinator.expel(step.values["names"], str(step.values["why"]), step.now),
}


def _event(step: Step) -> Event:
    assert step.event is not None
    return step.event


def started(
    coordinator: Coordinator | None,
    config: RunConfig,
    run: str,
    now: float,
    private: Private = NOTHING,
    run_id: str = "",
) -> Coordinator:
    """The run as a server that starts at `now` with `config` finds it: as it was, everybody away; with what its owner
    has changed (server/changing.py). Raises ConfigError."""
    if coordinator is None:
        coordinator = Coordinator(config, run, private, run_id)
    else:
        config, kept = changing.carried(config, coordinator.run.changed)
        coordinator = Coordinator.restored(config, *memory.dump(coordinator.run), private)
        coordinator.run.changed = kept
    coordinator.begin(now)
    return coordinator
