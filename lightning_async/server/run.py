"""The state of one run, as its handlers share it. Data, and the few words that all of them use.

Rule of this file: it decides nothing. Who decides what stands in the head of coordinator.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_async.config import RunConfig
from lightning_async.layout import Layout
from lightning_async.scheduling import Ledger
from lightning_async.server.actions import Action, Emit, Send
from lightning_async.server.members import Members
from lightning_async.server.rules import Rules
from lightning_async.server.stepping import Stepper
from lightning_async.server.store import Store
from lightning_async.staleness import Rate
from lightning_async.telemetry import Histogram, events
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, Frame


@dataclass(frozen=True)
class Waiting:
    """A Pull that is answered when there is something newer than `have`, or at `until`."""

    peer: bytes
    id: int
    have: int
    until: float
    packed: bool


@dataclass
class Run:
    """One run. `now` is the time of the event that is being handled; `actions` what has followed from it so far."""

    config: RunConfig
    name: str
    rules: Rules
    members: Members = field(default_factory=Members)
    id: str = ""  # random, made when the run was born; empty where nobody has made one
    layout: Layout | None = None
    stepper: Stepper | None = None
    initialiser: str = ""  # who was asked for the first parameters
    streams: dict[str, Ledger] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    staleness: Histogram = field(default_factory=Histogram)
    rate: Rate = field(default_factory=Rate)
    refused_strangers: int = 0
    steps_total: int = 0
    ended: str = ""  # why, once it has
    changed: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the owner: name -> {"given", "now"}
    restored_at: int | None = None  # version of the snapshot that this run was restored from
    started_at: float = 0.0
    short: tuple[int, int, str] | None = None  # (have, need, why) while there are too few workers, as last told
    waiting: list[Waiting] = field(default_factory=list)
    now: float = 0.0
    actions: list[Action] = field(default_factory=list)

    @property
    def store(self) -> Store | None:
        return self.stepper.store if self.stepper is not None else None

    @property
    def version(self) -> int:
        return self.stepper.store.version if self.stepper is not None else -1

    def send(
        self,
        peer: bytes,
        request: int,
        message: m.Reply,
        payload: tuple[Frame, ...] = (),
        sums: tuple[int, ...] | None = None,
    ) -> None:
        self.actions.append(Send(peer, Envelope(request, message, payload), sums))

    def emit(self, event: events.Event) -> None:
        self.actions.append(Emit(event))

    def ack(self) -> m.Ack:
        return m.Ack(version=self.version, live=len(self.members.workers()), stop=bool(self.ended))
