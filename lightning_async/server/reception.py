"""What is said to the server and not to the run: by whom may it be said at all, new keys, Probes, the owner's orders.

Asked about every message before the coordinator sees it. What is answered here never reaches the run or its journal,
but for orders that change the run, which go through the recorder like everything that does.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning_async.errors import ConfigError
from lightning_async.server.gate import Gate
from lightning_async.server.members import Member
from lightning_async.server.probing import Probes
from lightning_async.server.sharing import OWNS
from lightning_async.transport.allowed import revoke
from lightning_async.transport.door import Door
from lightning_async.transport.freight import Moving
from lightning_async.transport.keys import KEY_BYTES
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope
from lightning_async.wire.messages import Reason

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Duties:
    """What the owner may order, done by the server. Each raises ConfigError for what cannot be done."""

    stop: Callable[[str], None]
    snapshot: Callable[[], None]
    pardon: Callable[[str], None]
    change: Callable[[Mapping[str, Any]], None]


class Reception:
    """Of a server with this `door`, or without one. `token` is its owner's, empty for none; `ack` answers orders."""

    def __init__(self, door: Door | None, token: str, duties: Duties, ack: Callable[[], m.Ack], probes: Probes) -> None:
        self._door, self._gate = door, None if door is None else Gate(door)
        self._token, self._ack, self._probes = token, ack, probes
        self._orders: Mapping[str, Callable[[m.Order], None]] = {
            "stop": lambda order: duties.stop("stopped by its owner"),
            "snapshot": lambda order: duties.snapshot(),
            "pardon": lambda order: duties.pardon(order.name),
            "revoke": self._revoke,
            "change": lambda order: duties.change(order.values),
        }

    def hears(self, peer: bytes) -> bool:
        """Whether a message of this peer is looked at."""
        return self._door is None or self._door.hears(peer)

    def damaged(self, peer: bytes) -> None:
        """What `peer` sent was no message."""
        if self._door is not None:
            self._door.blame(peer, "no message")

    def receive(self, peer: bytes, envelope: Envelope) -> Envelope | None:
        """The answer; None for what is the run's business."""
        message = envelope.message
        refusal = None if self._gate is None else self._gate.check(peer, message)
        if refusal is not None:
            return Envelope(envelope.id, m.Refused(reason=refusal.reason.value, detail=refusal.detail))
        if isinstance(message, m.Probe):
            who = peer if self._door is None else peer[-KEY_BYTES:]
            return Envelope(envelope.id, *self._probes.answer(who, message, tuple(map(len, envelope.payload))))
        reply = self._answered(peer, message) if isinstance(message, (m.Enrol, m.Order, m.Pardon)) else None
        return None if reply is None else Envelope(envelope.id, reply)

    def _answered(self, peer: bytes, message: m.Enrol | m.Order | m.Pardon) -> m.Reply | None:
        try:
            return self._told(peer, message)
        except ConfigError as error:
            reason = Reason.KEY if isinstance(message, m.Enrol) else Reason.PROTOCOL
            return m.Refused(reason=reason.value, detail=str(error))

    def shown_out(self, members: Iterable[Member]) -> list[str]:
        """The members whose key the list lets in no more as what they are; looks only when the list has changed."""
        if self._gate is None or self._door is None or not self._door.refresh():
            return []
        return [member.name for member in members if member.alive and self._gate.is_out(member)]

    def owned(self, peer: bytes, envelope: Envelope) -> Envelope:
        """What the run hears: a word on the board is of the key that says it, and no other key reads or takes it."""
        if self._door is None or not isinstance(envelope.message, m.Share):
            return envelope
        key = f"{self._door.caller(peer).name}{OWNS}{envelope.message.key}"
        return replace(envelope, message=replace(envelope.message, key=key))

    def completed(self, envelope: Envelope, moving: Mapping[str, Moving]) -> Envelope:
        """A report says beside the run's state what is on its way in chunks, and what was turned away at the door; a
        word of the board goes to its owner under the name that he knows."""
        if isinstance(envelope.message, m.Shared) and self._door is not None:
            return replace(envelope, message=replace(envelope.message, key=envelope.message.key.partition(OWNS)[2]))
        if not isinstance(envelope.message, m.Report):
            return envelope
        state = dict(envelope.message.state)
        if found := {name: _row(moving[name]) for name in state.get("workers", {}) if name in moving}:
            state["transfers"] = found
        if self._door is not None:
            state["door"] = dict(self._door.counts)
        return replace(envelope, message=m.Report(state=state))

    def _told(self, peer: bytes, message: m.Enrol | m.Order | m.Pardon) -> m.Reply | None:
        if isinstance(message, m.Enrol):
            return None if self._door is None else self._enrolled(self._door, peer, message)
        order = message if isinstance(message, m.Order) else m.Order(what="pardon", name=message.worker)
        if not self._is_owner(peer, message.token):
            return None
        act = self._orders.get(order.what)
        if act is None:
            raise ConfigError(f"got the order {order.what[:40]!r}, expected one of {', '.join(self._orders)}")
        act(order)
        changes = (f"{name}={value!r}" for name, value in order.values.items())
        log.warning("the owner has ordered: %s", " ".join(filter(None, (order.what, order.name[:80], *changes))))
        return self._ack()

    def _enrolled(self, door: Door, peer: bytes, enrol: m.Enrol) -> m.Enrolled:
        caller = door.enrol(peer, enrol.token, enrol.name)
        log.warning("%s %r is on the list of keys", caller.role, caller.name)
        return m.Enrolled(name=caller.name, role=caller.role, workers=caller.workers)

    def _is_owner(self, peer: bytes, token: str) -> bool:
        if self._gate is not None and self._gate.is_owner(peer):
            return True
        return bool(self._token) and hmac.compare_digest(self._token.encode(), token.encode())

    def _revoke(self, order: m.Order) -> None:
        if self._door is None:
            raise ConfigError("this server has no keys, so there is nothing to revoke")
        revoke(self._door.folder, order.name)


def _row(moving: Moving) -> dict[str, dict[str, int]]:
    """As a worker sees it: `up` is what it sends."""
    ways = {"up": moving.coming, "down": moving.going}
    return {way: {"bytes": there, "total": total} for way, (there, total) in ways.items() if total}
