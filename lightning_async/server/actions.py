"""What goes into the coordinator (events) and what comes out of it (actions)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lightning_async.telemetry import events
from lightning_async.wire.frames import Envelope
from lightning_async.wire.messages import Receipt


@dataclass(frozen=True)
class Received:
    """A message from a peer. `refused`: of a journal, the receipt of a Push whose payload was not kept."""

    peer: bytes
    envelope: Envelope
    refused: Receipt | None = None


@dataclass(frozen=True)
class Gone:
    """A peer that cannot be reached any more."""

    peer: bytes


@dataclass(frozen=True)
class Tick:
    """Time has passed. `silent`: the workers that were found silent for too long; None: the coordinator looks."""

    silent: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Send:
    """Send this to a peer. `sums`: checksums of the payload frames where they are known."""

    peer: bytes
    envelope: Envelope
    sums: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Emit:
    """Tell the sinks."""

    event: events.Event


@dataclass(frozen=True)
class Limit:
    """From now on no message needs to be larger than this."""

    largest_message_bytes: int


@dataclass(frozen=True)
class Stop:
    """The run is over and nobody is left to tell."""

    why: str


Event: TypeAlias = Received | Gone | Tick
Action: TypeAlias = Send | Emit | Limit | Stop
