"""One ZeroMQ socket with all that our ends have in common: options, waking, waiting no longer than asked, closing.

What an option is for stands in the head of zeromq.py.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence

import zmq

from lightning_async.errors import CallerError, NetworkError
from lightning_async.transport.base import Frame
from lightning_async.transport.bell import Bell

RECEIVE_QUEUE = 8  # messages that have arrived from each peer and wait to be read; then TCP makes it wait
COPY_BELOW_BYTES = 64 * 1024  # a smaller frame costs less to copy than to keep track of
HANDSHAKE_S = 5.0  # a connection that says nothing ZeroMQ understands is dropped after this
SILENCE_S = 60.0  # a peer whose machine answers nothing for this long is gone

Sent = Callable[[int, zmq.MessageTracker], None]
_MORE = zmq.NOBLOCK | zmq.SNDMORE


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    try:
        yield
    except zmq.ZMQError as error:
        raise NetworkError(f"{doing}: {error}") from error


class Endpoint:
    """One socket with its context, its wake-up line and the process it belongs to."""

    def __init__(self, kind: int, queue: int, largest_message_bytes: int) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(kind)
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
        with translated("receiving"):
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

    def send(self, frames: Sequence[Frame], sent: Sent | None = None) -> None:
        """Raises zmq.ZMQError when the first frame finds no room; a message is queued whole or not at all.

        `sent` is told of every large frame, with what says when it has left.
        """
        try:
            self._put(frames[0], last=len(frames) == 1)
        except zmq.Again:
            self.socket.getsockopt(zmq.EVENTS)  # makes ZeroMQ notice what its peer has read meanwhile
            self._put(frames[0], last=len(frames) == 1)
        for index, frame in enumerate(frames[1:], start=2):
            self._put(frame, last=index == len(frames), sent=sent)

    def _put(self, frame: Frame, last: bool, sent: Sent | None = None) -> None:
        flags = zmq.NOBLOCK if last else _MORE
        if len(frame) < COPY_BELOW_BYTES:
            self.socket.send(frame, flags)
        else:  # the view keeps a bytearray from moving; pyzmq by itself keeps only the object
            tracker = self.socket.send(memoryview(frame), flags, copy=False, track=sent is not None)
            if sent is not None and tracker is not None:
                sent(len(frame), tracker)

    @property
    def ours(self) -> bool:
        """Whether this is the process that opened it, and it is open."""
        return self._process == os.getpid() and not self.socket.closed

    def close(self) -> None:
        """In a forked child only the child's copies of the descriptors go; the parent's socket lives on."""
        if self.ours:
            self.socket.close(0)
            self.context.term()
        self.bell.close()
