"""A transport inside one process: listener and connections share lists in memory. For tests, examples and simulation.

It keeps the contract of `transport.base`, bounded queues, vanished peers and reconnection included, and is safe between
threads. Frames are handed over as read-only views of the sender's bytes; nothing is copied and nothing is added, so
`traffic` counts exactly the bytes of the frames.

An exchange is the place behind an address. A connection may dial before anybody listens: what it sends waits there
(bounded) for the next listener. When a listener closes, its peers and what waits for it are dropped.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_async.errors import CallerError, ConfigError, NetworkError
from lightning_async.transport.base import Connection, Count, Frame, Listener, Traffic
from lightning_async.transport.mailbox import Mailbox
from lightning_async.wire.frames import read_only

SCHEME = "memory://"
QUEUE = 64  # messages that wait in one direction

_numbers = itertools.count(1)


def listen(address: str = SCHEME, *, queue: int = QUEUE) -> MemoryListener:
    """Listen at `memory://name`; without a name at one that nobody has. Raises ConfigError when it is taken."""
    return MemoryListener(_exchange(address.removeprefix(SCHEME) or f"{next(_numbers)}"), queue)


def connect(address: str, *, queue: int = QUEUE) -> MemoryConnection:
    """Dial `memory://name`, whether somebody listens there already or not."""
    return MemoryConnection(_exchange(address.removeprefix(SCHEME)), queue)


_Parcel = tuple[bytes, list[memoryview]]


@dataclass
class _Exchange:
    name: str
    inbox: Mailbox[_Parcel] = field(default_factory=lambda: Mailbox(QUEUE))
    peers: dict[bytes, Mailbox[list[memoryview]]] = field(default_factory=dict)
    listening: bool = False
    largest_bytes: int | None = None  # larger frames vanish, as they do where a socket refuses them
    users: int = 0  # listener and connections; the exchange goes with the last of them


_exchanges: dict[str, _Exchange] = {}
_lock = threading.Lock()  # guards _exchanges and the fields of its exchanges


def _exchange(name: str) -> _Exchange:
    with _lock:
        exchange = _exchanges.setdefault(name, _Exchange(name))
        exchange.users += 1
        return exchange


def _leave(exchange: _Exchange) -> None:
    """Call with the lock held."""
    exchange.users -= 1
    if exchange.users == 0:
        del _exchanges[exchange.name]


class MemoryListener(Listener):
    def __init__(self, exchange: _Exchange, queue: int) -> None:
        with _lock:
            if exchange.listening:
                _leave(exchange)
                raise ConfigError(f"{SCHEME}{exchange.name} is taken; close its listener or choose another name")
            exchange.listening = True
        exchange.largest_bytes = None
        self.address = SCHEME + exchange.name
        self._exchange = exchange
        self._closed = False
        exchange.inbox.room = queue

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        _check(self._closed)
        return self._exchange.inbox.take(timeout_s)

    def send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        _check(self._closed)
        with _lock:
            mailbox = self._exchange.peers.get(peer)
        return mailbox is not None and mailbox.put(read_only(frames))

    def wake(self) -> None:
        self._exchange.inbox.wake()

    def limit(self, largest_message_bytes: int) -> None:
        self._exchange.largest_bytes = largest_message_bytes

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with _lock:
            self._exchange.listening = False
            self._exchange.peers.clear()
            self._exchange.inbox.clear()
            _leave(self._exchange)


class MemoryConnection(Connection):
    def __init__(self, exchange: _Exchange, queue: int) -> None:
        self._exchange = exchange
        self._inbox: Mailbox[list[memoryview]] = Mailbox(queue)
        self._peer = b""
        self._count = Count()
        self._closed = False

    def send(self, frames: Sequence[Frame]) -> None:
        _check(self._closed)
        with _lock:
            if self._peer not in self._exchange.peers:  # the first message, or the first to another listener
                self._peer = next(_numbers).to_bytes(8, "big")
                self._exchange.peers[self._peer] = self._inbox
        views, largest_bytes = read_only(frames), self._exchange.largest_bytes
        if largest_bytes is not None and any(view.nbytes > largest_bytes for view in views):
            return
        if not self._exchange.inbox.put((self._peer, views)):
            raise NetworkError(f"{SCHEME}{self._exchange.name} does not read: its queue is full")
        self._count.sent += _size(views)

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        _check(self._closed)
        frames = self._inbox.take(timeout_s)
        if frames is not None:
            self._count.received += _size(frames)
        return frames

    def wake(self) -> None:
        self._inbox.wake()

    def traffic(self) -> Traffic:
        return self._count.traffic()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with _lock:
            self._exchange.peers.pop(self._peer, None)
            _leave(self._exchange)
        self._inbox.clear()


def _size(frames: Sequence[memoryview]) -> int:
    return sum(frame.nbytes for frame in frames)


def _check(closed: bool) -> None:
    if closed:
        raise CallerError("this end is closed; open another one")
