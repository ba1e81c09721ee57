"""Messages over TCP with ZeroMQ: a ROUTER on the server, a DEALER on each worker. The only file that imports zmq.

What ZeroMQ gives: whole messages, reconnection, one bounded queue per peer, frames that are not copied. What this file
adds: errors of ours, byte counts, waking, no waits longer than asked, and no public port by accident.

- Every listener and connection has a context of its own, so closing it ends its threads and frees its port at once.
  Neither survives a fork: the child must dial again, and is told so.
- A vanished machine is noticed by the kernel (keepalive when the line is silent, a time limit on unacknowledged bytes
  when it is not), not by ZMTP heartbeats: these wait behind the frame that is travelling, so a large update on a slow
  line would look like a dead peer (docs/decisions/0010-no-zmtp-heartbeats.md).
- ZeroMQ applies its size limit to connections of a later `bind` only, and unbinding ends those that are there. So
  `limit` binds again while nobody has spoken yet, and otherwise drops larger messages in `receive`.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Iterator, Sequence

import zmq

from lightning_async.errors import CallerError, ConfigError, NetworkError
from lightning_async.transport.addresses import EVERYWHERE, Address, is_literal, is_loopback, listening, parse
from lightning_async.transport.base import Connection, Count, Frame, Listener, Traffic
from lightning_async.transport.bell import Bell
from lightning_async.wire.frames import flat

SEND_QUEUE = 64  # messages that wait to leave, for each peer
RECEIVE_QUEUE = 8  # messages that have arrived from each peer and wait to be read; then TCP makes it wait
LARGEST_MESSAGE_BYTES = 4 * 2**30  # of one frame, until `limit` says less
COPY_BELOW_BYTES = 64 * 1024  # a smaller frame costs less to copy than to keep track of
HANDSHAKE_S = 5.0  # a connection that says nothing ZeroMQ understands is dropped after this
SILENCE_S = 60.0  # a peer whose machine answers nothing for this long is gone
RECONNECT_S = 0.1
RECONNECT_MAX_S = 5.0
OTHER_FAMILY_S = 2.0  # a host name that does not answer is tried over IPv6, then over IPv4 again, this far apart


_MORE = zmq.NOBLOCK | zmq.SNDMORE


def listen(
    url: str, *, public: bool = False, queue: int = SEND_QUEUE, largest_message_bytes: int = LARGEST_MESSAGE_BYTES
) -> ZeroMQListener:
    """Bind `tcp://host:port`; port 0 takes a free one, see `address`.

    Raises ConfigError for a malformed or taken address, and for one beyond this machine unless `public`.
    """
    address = parse(url)
    if not public and not is_loopback(address.host):
        raise ConfigError(
            f"{url} can be reached from other machines, and nothing here asks who is calling; bind tcp://127.0.0.1:"
            f"{address.port} and let workers in through a tunnel, or allow it with public=True"
        )
    return ZeroMQListener(address, queue, largest_message_bytes)


def connect(
    url: str, *, queue: int = SEND_QUEUE, largest_message_bytes: int = LARGEST_MESSAGE_BYTES
) -> ZeroMQConnection:
    """Dial `tcp://host:port`, now and whenever the line breaks. Returns at once; raises ConfigError for a bad URL."""
    address = parse(url)
    if address.host == EVERYWHERE or address.port == 0:
        raise ConfigError(f"{url} is where a server may listen, not where one can be dialled; give its host and port")
    return ZeroMQConnection(address, queue, largest_message_bytes)


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except zmq.ZMQError as error:
        raise NetworkError(f"{doing}: {error}") from error


class _Endpoint:
    """One socket with its context, its wake-up line and the process it belongs to."""

    def __init__(self, kind: int, queue: int, largest_message_bytes: int) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(kind)
        self.bell = Bell()
        self._process = os.getpid()
        self._poller = zmq.Poller()
        self._poller.register(self.socket, zmq.POLLIN)
        self._poller.register(self.bell, zmq.POLLIN)
        self._configure(queue, largest_message_bytes)

    def _configure(self, queue: int, largest_message_bytes: int) -> None:
        options = {
            zmq.LINGER: 0,
            zmq.SNDHWM: queue,
            zmq.RCVHWM: RECEIVE_QUEUE,
            zmq.MAXMSGSIZE: largest_message_bytes,
            zmq.HANDSHAKE_IVL: int(HANDSHAKE_S * 1000),
            zmq.TCP_KEEPALIVE: 1,
            zmq.TCP_KEEPALIVE_IDLE: int(SILENCE_S / 3),
            zmq.TCP_KEEPALIVE_INTVL: int(SILENCE_S / 6),
            zmq.TCP_KEEPALIVE_CNT: 4,
            zmq.TCP_MAXRT: int(SILENCE_S * 1000),
        }
        for option, value in options.items():
            self.socket.setsockopt(option, value)

    def check(self) -> None:
        """Raises CallerError when this endpoint cannot be used here."""
        if self._process != os.getpid():
            raise CallerError(f"this socket belongs to process {self._process}; open one in process {os.getpid()}")
        if self.socket.closed:
            raise CallerError("this socket is closed; open another one")

    def receive(self, timeout_s: float) -> list[zmq.Frame] | None:
        """All frames of the next message, or None after the timeout or a wake."""
        self.check()
        with _translated("receiving"):
            frames = self._take()
            if frames is None and timeout_s > 0:
                ready = dict(self._poller.poll(math.ceil(timeout_s * 1000)))
                if self.bell.fileno() in ready:
                    self.bell.silence()
                frames = self._take()
            return frames

    def _take(self) -> list[zmq.Frame] | None:
        ready = self.socket.getsockopt(zmq.EVENTS)  # cheaper than the exception of an empty queue
        if not ready & zmq.POLLIN:  # type: ignore[operator,arg-type]
            return None
        return self.socket.recv_multipart(zmq.NOBLOCK, copy=False)

    def send(self, frames: Sequence[Frame]) -> None:
        """Raises zmq.ZMQError when the first frame finds no room; a message is queued whole or not at all."""
        try:
            self._put(frames[0], last=len(frames) == 1)
        except zmq.Again:
            self.socket.getsockopt(zmq.EVENTS)  # makes ZeroMQ notice what its peer has read meanwhile
            self._put(frames[0], last=len(frames) == 1)
        for index, frame in enumerate(frames[1:], start=2):
            self._put(frame, last=index == len(frames))

    def _put(self, frame: Frame, last: bool) -> None:
        flags = zmq.NOBLOCK if last else _MORE
        if len(frame) < COPY_BELOW_BYTES:
            self.socket.send(frame, flags)
        else:  # the view keeps a bytearray from moving; pyzmq by itself keeps only the object
            self.socket.send(memoryview(frame), flags, copy=False)

    def close(self) -> None:
        """In a forked child only the child's copies of the descriptors go; the parent's socket lives on."""
        if self._process == os.getpid() and not self.socket.closed:
            self.socket.close(0)
            self._context.term()
        self.bell.close()


def _wire_bytes(frames: Sequence[Frame]) -> int:
    """What ZMTP 3 puts on the line for a message: flags and a length of 1 or 8 bytes before each frame."""
    return sum(len(frame) + (2 if len(frame) < 256 else 9) for frame in frames)


class ZeroMQListener(Listener):
    """The server's ROUTER. A peer is the routing id that ZeroMQ gave to its connection."""

    def __init__(self, address: Address, queue: int, largest_message_bytes: int) -> None:
        self._door = listening(address)
        self._met = False  # whether anybody has sent anything
        self._largest_bytes = largest_message_bytes
        self._end = _Endpoint(zmq.ROUTER, queue, largest_message_bytes)
        self._end.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._bind()
        host = socket.gethostname() if address.host == EVERYWHERE else address.host
        self.address = Address(host, self._door.getsockname()[1]).url

    def __repr__(self) -> str:
        return f"<ZeroMQListener {self.address}>"

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        deadline = time.monotonic() + timeout_s
        while (message := self._end.receive(timeout_s)) is not None:
            peer, frames = message[0].bytes, [frame.buffer for frame in message[1:]]
            self._met = True
            if all(len(frame) <= self._largest_bytes for frame in frames):
                return peer, frames
            timeout_s = max(0.0, deadline - time.monotonic())
        return None

    def send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        self._end.check()
        plain = [flat(frame) for frame in frames]
        try:
            self._end.send([peer, *plain])
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
        self._end.socket.setsockopt(zmq.MAXMSGSIZE, largest_message_bytes)
        if not self._met:
            self._end.socket.unbind(self._end.socket.getsockopt_string(zmq.LAST_ENDPOINT))
            self._bind()

    def close(self) -> None:
        self._end.close()
        self._door.close()

    def _bind(self) -> None:
        """Let ZeroMQ accept at the door, by a descriptor of its own: who knocks while it changes hands can wait."""
        self._end.socket.setsockopt(zmq.USE_FD, os.dup(self._door.fileno()))
        self._end.socket.bind("tcp://127.0.0.1:0")  # the descriptor decides, not this address


class ZeroMQConnection(Connection):
    """A worker's DEALER. It keeps dialling, ever slower, until it is closed."""

    def __init__(self, address: Address, queue: int, largest_message_bytes: int) -> None:
        self._address = address
        self._counted = Count()
        self._end = _Endpoint(zmq.DEALER, queue, largest_message_bytes)
        self._end.socket.setsockopt(zmq.RECONNECT_IVL, int(RECONNECT_S * 1000))
        self._end.socket.setsockopt(zmq.RECONNECT_IVL_MAX, int(RECONNECT_MAX_S * 1000))
        self._end.socket.setsockopt(zmq.CONNECT_TIMEOUT, int(RECONNECT_MAX_S * 1000))
        self._end.socket.setsockopt(zmq.IPV6, int(":" in address.host))
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
        self._counted.sent += _wire_bytes(plain)

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        message = self._end.receive(timeout_s)
        if message is None:
            if time.monotonic() > self._try_other_at:
                self._try_other_family()
            return None
        self._try_other_at = math.inf
        frames = [frame.buffer for frame in message]
        self._counted.received += _wire_bytes(frames)
        return frames

    def wake(self) -> None:
        self._end.bell.ring()

    def traffic(self) -> Traffic:
        return self._counted.traffic()

    def close(self) -> None:
        self._end.close()

    def _try_other_family(self) -> None:
        """ZeroMQ looks a name up in one family only. What was queued for a server that never answered is dropped."""
        line = self._end.socket
        line.disconnect(self._address.url)
        line.setsockopt(zmq.IPV6, not line.getsockopt(zmq.IPV6))
        line.connect(self._address.url)
        self._try_other_at = time.monotonic() + OTHER_FAMILY_S
