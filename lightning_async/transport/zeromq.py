"""Messages over TCP with ZeroMQ: a ROUTER on the server, a DEALER on each worker. Only zeromq*.py import zmq.

What ZeroMQ gives: whole messages, reconnection, one bounded queue per peer, frames that are not copied. What this file
adds: errors of ours, byte counts, waking, no waits longer than asked, keys (zeromq_curve.py), and no public port by
accident. Without keys nothing of theirs is there: no thread, no encryption, no byte more.

- Every listener and connection has a context of its own, so closing it ends its threads and frees its port at once.
  Neither survives a fork: the child must dial again, and is told so.
- A vanished machine is noticed by the kernel (keepalive when the line is silent, a time limit on unacknowledged bytes
  when it is not), not by ZMTP heartbeats: these wait behind the frame that is travelling, so a large update on a slow
  line would look like a dead peer (docs/decisions/0010-no-zmtp-heartbeats.md).
- ZeroMQ applies its size limit to connections of a later `bind` only, and unbinding ends those that are there. So
  `limit` binds again while nobody has spoken yet, and otherwise drops larger messages in `receive`.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import zmq

from lightning_async.errors import ConfigError, NetworkError
from lightning_async.transport.addresses import EVERYWHERE, Address, is_literal, is_loopback, listening, parse
from lightning_async.transport.base import Connection, Count, Frame, Listener, Traffic
from lightning_async.transport.door import PLACE_BYTES, Door, place
from lightning_async.transport.keys import KEY_BYTES, Key
from lightning_async.transport.zeromq_connections import Connections
from lightning_async.transport.zeromq_curve import (
    FRAME_BYTES,
    Doorkeeper,
    host_of,
    key_of,
    line_of,
    secure_client,
    secure_server,
)
from lightning_async.transport.zeromq_endpoint import Endpoint
from lightning_async.transport.zeromq_handshakes import Handshakes
from lightning_async.transport.zeromq_outgoing import Outgoing
from lightning_async.wire.frames import flat

SEND_QUEUE = 64  # messages that wait to leave, for each peer
LARGEST_MESSAGE_BYTES = 4 * 2**30  # of one frame, until `limit` says less
ROOM = 4  # of the largest message: so many bytes one peer may have under way in each direction
RECONNECT_S = 0.1
RECONNECT_MAX_S = 5.0
OTHER_FAMILY_S = 2.0  # a host name that does not answer is tried over IPv6, then over IPv4 again, this far apart


def listen(
    url: str,
    *,
    keys: Path | Door | None = None,
    public: bool = False,
    queue: int = SEND_QUEUE,
    largest_message_bytes: int = LARGEST_MESSAGE_BYTES,
) -> ZeroMQListener:
    """Bind `tcp://host:port`; port 0 takes a free one, see `address`. `keys`: the folder of the server's keys, or
    the door that it shares with another listener.

    Raises ConfigError for a malformed or taken address, for keys that cannot be used, and for an address beyond this
    machine without keys unless `public`.
    """
    address = parse(url)
    if keys is None and not public and not is_loopback(address.host):
        raise ConfigError(
            f"{url} can be reached from other machines, so this server needs keys: `lightning-async keys server` makes "
            "them, and `lightning-async invite` a line with which one worker joins. Or bind tcp://127.0.0.1:"
            f"{address.port} and let workers in through a tunnel; or, inside a network that you trust, do without "
            "keys: --public, public=True"
        )
    return ZeroMQListener(address, queue, largest_message_bytes, Door(keys) if isinstance(keys, Path) else keys)


def connect(
    url: str,
    *,
    key: Key | None = None,
    queue: int = SEND_QUEUE,
    largest_message_bytes: int = LARGEST_MESSAGE_BYTES,
) -> ZeroMQConnection:
    """Dial `tcp://host:port`, now and whenever the line breaks: encrypted with `key`, or plain without one.

    Returns at once; raises ConfigError for a bad URL.
    """
    address = parse(url)
    if address.host == EVERYWHERE or address.port == 0:
        raise ConfigError(f"{url} is where a server may listen, not where one can be dialled; give its host and port")
    return ZeroMQConnection(address, queue, largest_message_bytes, key)


def _wire_bytes(frames: Sequence[Frame], more: int = 0) -> int:
    """What ZMTP 3 puts on the line for a message: flags and a length of 1 or 8 bytes before each frame, and `more`."""
    return sum(len(frame) + more + (2 if len(frame) + more < 256 else 9) for frame in frames)


class ZeroMQListener(Listener):
    """The server's ROUTER. A peer is the routing id that ZeroMQ gave to its connection; then its place, and its key."""

    def __init__(self, address: Address, queue: int, largest_message_bytes: int, door: Door | None) -> None:
        self._port = listening(address)
        self._met = False  # whether anybody has sent anything
        self._largest_bytes = largest_message_bytes
        self._end = Endpoint(zmq.ROUTER, queue, largest_message_bytes)
        self._end.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.door, self._outgoing = door, Outgoing()
        self._keeper: Doorkeeper | None = None
        self._connections: Connections | None = None
        if door is not None:
            self._connections = Connections(self._end.socket, door.turn_away)
            self._keeper = Doorkeeper(self._end.context, door, self._connections)
            secure_server(self._end.socket, door.pair)
        self._bind()
        host = socket.gethostname() if address.host == EVERYWHERE else address.host
        self.address = Address(host, self._port.getsockname()[1]).url

    def __repr__(self) -> str:
        return f"<ZeroMQListener {self.address}>"

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        deadline = time.monotonic() + timeout_s
        while (message := self._end.receive(timeout_s)) is not None:
            frames = [frame.buffer for frame in message[1:]]
            peer, self._met = self._peer(message, frames), True
            if peer and self._fits(peer, frames):
                return peer, frames
            timeout_s = max(0.0, deadline - time.monotonic())
        return None

    def send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        self._end.check()
        plain = [flat(frame) for frame in frames]
        waiting = self._outgoing.bytes_to(peer)
        if waiting and waiting + sum(map(len, plain)) > ROOM * self._largest_bytes:
            return False  # it does not read
        try:
            address = peer if self.door is None else peer[: -KEY_BYTES - PLACE_BYTES]
            self._end.send([address, *plain], partial(self._outgoing.note, peer))
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise NetworkError(f"sending to {peer.hex()}: {error}") from error
        return True

    def wake(self) -> None:
        self._end.bell.ring()

    def limit(self, largest_message_bytes: int) -> None:
        self._end.check()
        self._largest_bytes = largest_message_bytes
        on_the_line = largest_message_bytes + (0 if self.door is None else FRAME_BYTES)
        self._end.socket.setsockopt(zmq.MAXMSGSIZE, on_the_line)
        if self._connections is not None:
            self._connections.room_bytes = ROOM * on_the_line
        if not self._met:
            self._end.socket.unbind(self._end.socket.getsockopt_string(zmq.LAST_ENDPOINT))
            self._bind()

    def close(self) -> None:
        if self._keeper is not None and self._end.ours:
            self._keeper.close()
        self._end.close()
        self._port.close()

    def _peer(self, message: Sequence[zmq.Frame], frames: Sequence[Frame]) -> bytes:
        """Who sent it; empty for a message without a key where there has to be one."""
        peer = message[0].bytes
        if self.door is None or self._connections is None:
            return peer
        key = key_of(message[-1])
        self._connections.note(line_of(message[-1]), key, _wire_bytes(frames, FRAME_BYTES))
        return peer + place(host_of(message[-1])) + key if frames and len(key) == KEY_BYTES else b""

    def _fits(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        sizes = [len(frame) for frame in frames]
        if max(sizes, default=0) <= self._largest_bytes and sum(sizes) <= 2 * self._largest_bytes:
            return True
        if self.door is not None:
            self.door.blame(peer, "too large")
        return False

    def _bind(self) -> None:
        """Let ZeroMQ accept at the door, by a descriptor of its own: who knocks while it changes hands can wait."""
        self._end.socket.setsockopt(zmq.USE_FD, os.dup(self._port.fileno()))
        self._end.socket.bind("tcp://127.0.0.1:0")  # the descriptor decides, not this address


class ZeroMQConnection(Connection):
    """A worker's DEALER. It keeps dialling, ever slower, until it is closed."""

    def __init__(self, address: Address, queue: int, largest_message_bytes: int, key: Key | None) -> None:
        self._address, self._key = address, key
        self._counted, self._more = Count(), 0 if key is None else FRAME_BYTES
        self._end = Endpoint(zmq.DEALER, queue, largest_message_bytes)
        self._end.socket.setsockopt(zmq.RECONNECT_IVL, int(RECONNECT_S * 1000))
        self._end.socket.setsockopt(zmq.RECONNECT_IVL_MAX, int(RECONNECT_MAX_S * 1000))
        self._end.socket.setsockopt(zmq.CONNECT_TIMEOUT, int(RECONNECT_MAX_S * 1000))
        self._end.socket.setsockopt(zmq.IPV6, int(":" in address.host))
        if key is not None:
            secure_client(self._end.socket, key)
        self._handshakes = Handshakes(self._end.socket, address.url, key)
        self._end.socket.connect(address.url)
        self._try_other_at = math.inf if is_literal(address.host) else time.monotonic() + OTHER_FAMILY_S

    def __repr__(self) -> str:
        return f"<ZeroMQConnection {self._address.url} | up {self._counted.sent} B | down {self._counted.received} B>"

    def send(self, frames: Sequence[Frame]) -> None:
        self._end.check()
        plain = [flat(frame) for frame in frames]
        try:
            self._end.send(plain)
        except zmq.Again as error:
            raise NetworkError(f"{self._address.url} does not read: its queue of messages is full") from error
        except zmq.ZMQError as error:
            raise NetworkError(f"sending to {self._address.url}: {error}") from error
        self._counted.sent += _wire_bytes(plain, self._more)

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        message = self._end.receive(timeout_s)
        if message is None:
            self.trouble = self._handshakes.look()
            if self._handshakes.deaf:
                self._handshakes.deaf = False
                self._dial_anew()
            if time.monotonic() > self._try_other_at:
                self._try_other_family()
            return None
        self._try_other_at = math.inf
        frames = [frame.buffer for frame in message]
        self._counted.received += _wire_bytes(frames, self._more)
        return frames

    def wake(self) -> None:
        self._end.bell.ring()

    def traffic(self) -> Traffic:
        return self._counted.traffic()

    def close(self) -> None:
        if self._end.ours:
            self._handshakes.close()
        self._end.close()

    def _try_other_family(self) -> None:
        """ZeroMQ looks a name up in one family only. What was queued for a server that never answered is dropped."""
        line = self._end.socket
        line.setsockopt(zmq.IPV6, not line.getsockopt(zmq.IPV6))
        self._dial_anew()
        self._try_other_at = time.monotonic() + OTHER_FAMILY_S

    def _dial_anew(self) -> None:
        """What waits to be sent, or was under way, is dropped."""
        self._end.socket.disconnect(self._address.url)
        self._end.socket.connect(self._address.url)
