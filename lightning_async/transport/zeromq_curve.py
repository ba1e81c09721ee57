"""CurveZMQ: each side proves its key, and everything between them is encrypted. What the socket needs for it.

The server's socket asks a doorkeeper about every key that has proved itself in a handshake (ZAP, RFC 27). It fails
closed: `ZAP_ENFORCE_DOMAIN` lets nobody in when no doorkeeper answers. The key comes with every message as its user
id, so who sent it is never what a message says about itself.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Sequence

import zmq
from zmq.utils import z85

from lightning_async.transport.bell import Bell
from lightning_async.transport.door import Door
from lightning_async.transport.keys import Key, Pair
from lightning_async.transport.zeromq_connections import LOOK_S, Connections

ZAP_ADDRESS = "inproc://zeromq.zap.01"
DOMAIN = b"lightning_async"
FRAME_BYTES = 33  # of a CURVE message beside its content: name, nonce, flags, authenticator
USER_ID, PEER_ADDRESS = "User-Id", "Peer-Address"
log = logging.getLogger(__name__)


def new_pair() -> Pair:
    """A pair that nobody else has."""
    public, secret = zmq.curve_keypair()
    return Pair(z85.decode(public), z85.decode(secret))


def secure_server(socket: zmq.Socket[bytes], pair: Pair) -> None:
    """From its next `bind` on, `socket` speaks CURVE only, and only to whom a doorkeeper of its context lets in."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def secure_client(socket: zmq.Socket[bytes], key: Key) -> None:
    """From its next `connect` on, `socket` speaks CURVE only, and only with the server that `key` names."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, key.server)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, key.pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, key.pair.secret)


def key_of(frame: zmq.Frame) -> bytes:
    """The key whose bearer sent `frame`; empty when nobody has proved one."""
    with contextlib.suppress(zmq.ZMQError, ValueError):
        return bytes.fromhex(str(frame.get(USER_ID)))
    return b""


def host_of(frame: zmq.Frame) -> str:
    """The address that `frame` came from; empty where ZeroMQ does not say."""
    with contextlib.suppress(zmq.ZMQError):
        return str(frame.get(PEER_ADDRESS))
    return ""


def line_of(frame: zmq.Frame) -> int:
    """The descriptor of the connection that `frame` came over; -1 where ZeroMQ does not say."""
    with contextlib.suppress(zmq.ZMQError, ValueError):
        return int(frame.get(zmq.SRCFD))
    return -1


class Doorkeeper:
    """Answers the handshakes of one context in a thread of its own, so that they do not wait for a step."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], door: Door, connections: Connections) -> None:
        self._door, self._bell, self._connections = door, Bell(), connections
        self._outcasts: deque[bytes] = deque()
        door.cuts.append(self._outcasts.append)
        self._closed = threading.Event()
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ZAP_ADDRESS)
        self._thread = threading.Thread(target=self._serve, name="lightning-async-door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._closed.set()
        self._bell.ring()
        self._thread.join()
        self._bell.close()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._bell, zmq.POLLIN)
        poller.register(self._connections.monitor, zmq.POLLIN)
        try:
            while not self._closed.is_set():
                poller.poll(int(LOOK_S * 1000))
                self._connections.look()
                self._connections.judge()
                while self._outcasts:
                    self._connections.put_out(self._outcasts.popleft())
                while self._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:  # type: ignore[operator,arg-type]
                    self._connections.look()  # so that nobody is let in of whom it does not know
                    self._answer(self._socket.recv_multipart(zmq.NOBLOCK))
        finally:
            self._connections.close()
            self._socket.close(0)

    def _answer(self, request: Sequence[bytes]) -> None:
        at = list(request).index(b"") + 1
        version, number, _, host, _, mechanism, *proved = request[at:]
        key = proved[0] if mechanism == b"CURVE" and len(proved) == 1 else b""
        good = bool(key) and self._knock(key, host.decode(errors="replace"))
        status = [b"200", b"", key.hex().encode(), b""] if good else [b"400", b"not on the list", b"", b""]
        self._socket.send_multipart([*request[:at], version, number, *status])

    def _knock(self, key: bytes, host: str) -> bool:
        try:
            return self._door.knock(key, host)
        except Exception:  # whatever it is, nobody comes in by it, and the next one is asked again
            log.exception("a key could not be judged, so it was not let in")
            return False
