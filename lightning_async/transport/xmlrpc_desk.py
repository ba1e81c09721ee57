"""The server's memory of those who come by HTTP: a session each, with what it has sent and what waits for it.

HTTP loses answers, not order, if every message has a number: a session's messages are taken once, in the order of their
numbers, and what waits for it is kept until it says that it has it. Any number of threads; every wait is bounded.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_async.errors import ProtocolError
from lightning_async.transport.base import Frame
from lightning_async.transport.xmlrpc_text import Parcel, parcel, plain

SILENCE_S = 60.0  # a session that says nothing for this long is gone
INBOX = 8  # messages of a session that wait to be read; then its next one waits
ANSWER_BYTES = 8 * 2**20  # of messages in one answer, unless the first one is larger
LONGEST_WAIT_S = 10.0
MOST_SESSIONS = 4096
ROOM = 4  # of the largest message: so many bytes may wait for one session that does not poll


@dataclass
class Session:
    """One client, from its first call until it leaves or falls silent."""

    peer: bytes
    heard_at: float
    expected: int = 0  # number of its next message; 0 for any, before the first
    inbox: deque[list[memoryview]] = field(default_factory=deque)
    outbox: deque[tuple[int, Parcel]] = field(default_factory=deque)
    waiting_bytes: int = 0  # in the outbox
    sent: int = 0  # messages that were put into the outbox so far
    asks: int = 0  # of polls so far: a newer one ends those that wait


class Desk:
    """Sessions by their secret names. `epoch` is another one in every life of the server."""

    def __init__(self, room: int, largest_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.room, self.largest_bytes, self._clock = room, largest_bytes, clock
        self.epoch = secrets.token_hex(8)
        self.arrived: Callable[[], None] = lambda: None
        self._sessions: dict[str, Session] = {}
        self._peers: dict[bytes, Session] = {}
        self._turns: deque[Session] = deque()  # sessions with something in their inbox, in fair order
        self._changed = threading.Condition()
        self._woken = self.closed = False

    # What a client calls; the values come as they were read.

    def put(self, name: Any, number: Any, message: Any) -> bool:
        """Take message `number` of a session; False when it has to come again later. Raises ProtocolError."""
        frames = [memoryview(frame) for frame in parcel(message)]
        if type(number) is not int or number < 1:
            raise ProtocolError("a message without a number")
        with self._changed:
            session = self._session(name)
            session.expected = session.expected or number  # it may have begun with another life of this server
            if number < session.expected:
                return True
            if number > session.expected:
                raise ProtocolError(f"message {number}, expected {session.expected}")
            self._changed.wait_for(lambda: len(session.inbox) < INBOX or self.closed, LONGEST_WAIT_S)
            if len(session.inbox) >= INBOX or self.closed or session.expected != number:
                return session.expected != number
            session.expected += 1
            if all(len(frame) <= self.largest_bytes for frame in frames):
                if not session.inbox:
                    self._turns.append(session)
                session.inbox.append(frames)
                self._changed.notify_all()
        self.arrived()
        return True

    def poll(self, name: Any, epoch: Any, have: Any, wait_ms: Any) -> list[Any]:
        """[epoch, [[number, message], ...]]: what comes after message `have` of this epoch, once there is something or
        after `wait_ms`. Raises ProtocolError."""
        if type(have) is not int or type(wait_ms) is not int or not isinstance(epoch, str):
            raise ProtocolError("a poll whose numbers are none")
        with self._changed:
            session = self._session(name)
            while epoch == self.epoch and session.outbox and session.outbox[0][0] <= have:
                session.waiting_bytes -= _bytes(session.outbox.popleft()[1])
            session.asks += 1
            asks, wait_s = session.asks, min(wait_ms / 1000, LONGEST_WAIT_S)
            self._changed.wait_for(lambda: session.outbox or session.asks != asks or self.closed, wait_s)
            session.heard_at = self._clock()
            return [self.epoch, _portion(session.outbox) if session.asks == asks else []]

    def leave(self, name: Any) -> bool:
        """Forget a session."""
        with self._changed:
            session = self._sessions.pop(name, None) if isinstance(name, str) else None
            if session is not None:
                self._peers.pop(session.peer, None)
                session.asks += 1
                self._changed.notify_all()
        return session is not None

    # What the listener calls.

    def take(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        """The next (peer, message), one of each session in turn, or None after the timeout or a `wake`."""
        with self._changed:
            self._changed.wait_for(lambda: self._turns or self._woken, max(0.0, timeout_s))
            if not self._turns:
                self._woken = False
                return None
            session = self._turns.popleft()
            message = session.inbox.popleft()
            if session.inbox:
                self._turns.append(session)
            self._changed.notify_all()
            return session.peer, message

    def send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        """Put a message before `peer`; False when it is gone or takes nothing."""
        with self._changed:
            self._forget_silent()
            session = self._peers.get(peer)
            if session is None or len(session.outbox) >= self.room:
                return False
            size = sum(len(frame) for frame in frames)
            if session.outbox and session.waiting_bytes + size > ROOM * self.largest_bytes:
                return False
            session.sent += 1
            session.waiting_bytes += size
            session.outbox.append((session.sent, plain(frames)))
            self._changed.notify_all()
            return True

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        """End every wait."""
        with self._changed:
            self.closed = True
            self._sessions.clear()
            self._peers.clear()
            self._turns.clear()
            self._changed.notify_all()

    def _session(self, name: Any) -> Session:
        if not isinstance(name, str) or not 16 <= len(name) <= 64:
            raise ProtocolError("a session needs a name of 16 to 64 characters")
        session = self._sessions.get(name)
        if session is None:
            self._forget_silent()
            if len(self._sessions) >= MOST_SESSIONS or self.closed:
                raise ProtocolError("there is no room for another session")
            # Nobody chooses what he is called here, and nobody learns a session's name from it.
            peer = hashlib.sha256(f"{self.epoch}/{name}".encode()).digest()[:16]
            session = self._sessions[name] = self._peers[peer] = Session(peer, self._clock())
        session.heard_at = self._clock()
        return session

    def _forget_silent(self) -> None:
        late = self._clock() - SILENCE_S
        for name in [name for name, session in self._sessions.items() if session.heard_at < late]:
            self._peers.pop(self._sessions.pop(name).peer, None)


def _bytes(message: Parcel) -> int:
    return sum(len(frame) for frame in message)


def _portion(outbox: deque[tuple[int, Parcel]]) -> list[list[Any]]:
    """As many messages as one answer may hold."""
    found: list[list[Any]] = []
    size = 0
    for number, message in outbox:
        size += _bytes(message)
        if found and size > ANSWER_BYTES:
            break
        found.append([number, message])
    return found
