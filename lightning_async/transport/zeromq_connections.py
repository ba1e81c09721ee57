"""The connections of a server's socket as the system sees them, and the end of those that take too much.

ZeroMQ bounds the size of a frame and the number of whole messages that wait, but not how many connections one address
opens, and not how many frames a message has: one that never ends fills the memory. So the sockets themselves are looked
at: where they come from, how many bytes the kernel has taken from each (TCP_INFO, where there is one), and how many of
these have been read. A connection with more than `room` bytes between the two is cut; a worker dials again.

Rule of this file: it listens to no event of a failed handshake. libzmq 4.3.5 loses the error while it tells of one, and
keeps a connection whose bytes were altered, deaf, where it should end it (docs/log.md).

Its thread is the doorkeeper's, but for `note`, which the server's thread calls; they share plain numbers.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import recv_monitor_message

MOST_FROM_ONE_ADDRESS = 256
MOST_AT_ALL = 8192
LOOK_S = 0.25
_RECEIVED_AT = 128  # tcpi_bytes_received in Linux' struct tcp_info
_INFO_BYTES = 136
EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED


@dataclass
class _Connection:
    host: str
    port: int
    key: bytes = b""
    read_bytes: int = 0


class Connections:
    """Those of `socket`; `turned_away` is told why one was cut."""

    def __init__(self, socket: zmq.Socket[bytes], turned_away: Callable[[str], object]) -> None:
        self._socket, self._turned_away = socket, turned_away
        self.monitor = socket.get_monitor_socket(EVENTS)
        self._open: dict[int, _Connection] = {}
        self._hosts: Counter[str] = Counter()
        self.room_bytes = sys.maxsize

    def note(self, descriptor: int, key: bytes, read_bytes: int) -> None:
        """A message of `key` that took `read_bytes` on the line was read."""
        found = self._open.get(descriptor)
        if found is not None:
            found.key = key
            found.read_bytes += read_bytes

    def look(self) -> None:
        """Take note of who came and went, and turn those away who are too many."""
        while self.monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:  # type: ignore[operator,arg-type]
            event = recv_monitor_message(self.monitor, zmq.NOBLOCK)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._enter(int(event["value"]))
            else:
                self._leave(int(event["value"]))

    def judge(self) -> None:
        """Cut whoever has more under way than there is room for."""
        for descriptor, found in list(self._open.items()):
            received = _received_bytes(descriptor, found)
            if received - found.read_bytes > self.room_bytes:
                self._turned_away("too much under way")
                _cut(descriptor, found)

    def put_out(self, key: bytes) -> None:
        """Cut every connection of `key`."""
        for descriptor, found in list(self._open.items()):
            if found.key == key:
                _cut(descriptor, found)

    def close(self) -> None:
        """To be called before the socket is closed. Idempotent."""
        if not self.monitor.closed:
            self._socket.disable_monitor()
            self.monitor.close(0)

    def _enter(self, descriptor: int) -> None:
        self._leave(descriptor)
        with contextlib.suppress(OSError, ValueError), _same(descriptor) as line:
            host, port = line.getpeername()[:2]
            found = self._open[descriptor] = _Connection(host, port)
            self._hosts[host] += 1
            if self._hosts[host] > MOST_FROM_ONE_ADDRESS or len(self._open) > MOST_AT_ALL:
                self._turned_away("too many connections")
                _cut(descriptor, found)

    def _leave(self, descriptor: int) -> None:
        gone = self._open.pop(descriptor, None)
        if gone is not None:
            if not gone.read_bytes:
                self._turned_away("came and went without a word")
            self._hosts[gone.host] -= 1
            if not self._hosts[gone.host]:
                del self._hosts[gone.host]


def _same(descriptor: int) -> socket.socket:
    """A socket of ours for the same connection; to be closed. Raises OSError where the connection has gone and its
    number is something else's by now, or nobody's."""
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _received_bytes(descriptor: int, found: _Connection) -> int:
    """What the kernel has taken from the line; 0 where it does not say."""
    if not sys.platform.startswith("linux"):
        return 0
    with contextlib.suppress(OSError), _same(descriptor) as line:
        if line.getpeername()[:2] == (found.host, found.port):
            info = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
            if len(info) == _INFO_BYTES:
                return int(struct.unpack_from("<Q", info, _RECEIVED_AT)[0])
    return 0


def _cut(descriptor: int, found: _Connection) -> None:
    """End it: ZeroMQ, whose socket it is, finds it closed. A descriptor that is another connection's by now is left."""
    with contextlib.suppress(OSError), _same(descriptor) as line:
        if line.getpeername()[:2] == (found.host, found.port):
            line.shutdown(socket.SHUT_RDWR)
