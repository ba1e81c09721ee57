"""One connection through the shaping proxy: two sockets, and the bytes that are under way between them.

A `Passage` is one direction: it reads a piece when the line has room for one, asks the model (links/flow.py) when that
piece is there, and writes it then. What it holds is bounded by what the line holds in flight and in its queue, so a
sender is slowed as a real line slows it: by TCP, not by memory. Rule of this file: it belongs to the proxy's thread.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from lightning_async.links.flow import Lane
from lightning_async.links.link import MSS_BYTES

PIECE_S = 0.002  # of the line's rate in one piece: its bursts are no longer than this
LARGEST_PIECE_BYTES = 256 * 1024
QUEUE_S = 0.1  # what waits before a line, at most
LARGEST_QUEUE_BYTES = 8 * 2**20
LEAST_HELD_BYTES = 64 * 1024


class Loop(Protocol):
    """What a passage needs of the proxy."""

    def now(self) -> float: ...

    def at(self, due: float, call: Callable[[], None]) -> None: ...


class Room:
    """The sizes that follow from a lane: `piece` bytes are read at once, `queue_s` waits before it, `held` is most."""

    def __init__(self, lane: Lane) -> None:
        rate = lane.way.bytes_per_s
        flying_s = (lane.way.latency_ms + lane.way.jitter_ms) / 1000
        self.piece = int(min(max(rate * PIECE_S, MSS_BYTES), LARGEST_PIECE_BYTES))
        self.queue_s = min(QUEUE_S, LARGEST_QUEUE_BYTES / rate)
        self.held = int(max(LEAST_HELD_BYTES, 2 * rate * (flying_s + self.queue_s)))


class End:
    """A socket of a connection, and what its owner waits for at it."""

    def __init__(self, line: socket.socket, selector: selectors.BaseSelector) -> None:
        self.socket, self._selector = line, selector
        self._mask = 0
        self.readable: Callable[[], None] = lambda: None
        self.writable: Callable[[], None] = lambda: None
        line.setblocking(False)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def wants(self, event: int, wanted: bool) -> None:
        """Be told, or no longer, of `event`: EVENT_READ or EVENT_WRITE."""
        mask = self._mask | event if wanted else self._mask & ~event
        if mask == self._mask:
            return
        if self._mask == 0:
            self._selector.register(self.socket, mask, self)
        elif mask == 0:
            self._selector.unregister(self.socket)
        else:
            self._selector.modify(self.socket, mask, self)
        self._mask = mask

    def close(self, reset: bool) -> None:
        """Hang up; with `reset` as a line does that breaks. A forked child may hold the socket too, so it is told."""
        self.wants(selectors.EVENT_READ | selectors.EVENT_WRITE, False)
        if reset:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class Passage:
    """One direction of one connection, from its `begins` on. `carried` is told how many bytes were written, `broken`
    is called when one of its sockets fails, `ended` when its last byte is through."""

    def __init__(self, source: End, sink: End, lane: Lane, loop: Loop, begins: float) -> None:
        self._source, self._sink, self._lane, self._loop, self._begins = source, sink, lane, loop, begins
        self._flow, self._room = lane.flow(), Room(lane)
        self._waiting: deque[tuple[float, memoryview]] = deque()  # when a piece is there; an empty one is the end
        self._held = 0  # bytes
        self._closing = self._resumes = self._delivers = False
        self.over = False
        self.carried: Callable[[int], None] = lambda size: None
        self.broken: Callable[[], None] = lambda: None
        self.ended: Callable[[], None] = lambda: None
        source.readable, sink.writable = self._read, self._deliver
        self._resume()

    def stop(self) -> None:
        """Read and write no more."""
        self.over = True
        self._waiting.clear()

    def _resume(self) -> None:
        """Read as soon as line and window have room."""
        if self._closing or self.over:
            return
        at = max(self._begins, self._flow.ready_at, self._lane.pipe.free_at - self._room.queue_s)
        soon = at <= self._loop.now()
        self._source.wants(selectors.EVENT_READ, soon and self._held < self._room.held)
        if not soon and not self._resumes:
            self._resumes = True
            self._loop.at(at, self._resume_now)

    def _resume_now(self) -> None:
        self._resumes = False
        self._resume()

    def _read(self) -> None:
        try:
            data = self._source.socket.recv(self._room.piece)
        except BlockingIOError:
            return
        except OSError:
            self.broken()
            return
        due = self._flow.send(len(data), self._loop.now(), last=len(data) < self._room.piece)
        self._waiting.append((due, memoryview(data)))
        self._held += len(data)
        self._wait_for_first()
        if not data:
            self._closing = True
            self._source.wants(selectors.EVENT_READ, False)
        self._resume()

    def _wait_for_first(self) -> None:
        if self._waiting and not self._delivers:
            self._delivers = True
            self._loop.at(self._waiting[0][0], self._deliver_now)

    def _deliver_now(self) -> None:
        self._delivers = False
        self._deliver()

    def _deliver(self) -> None:
        """Write what is there, as far as its reader takes it."""
        while self._waiting and self._waiting[0][0] <= self._loop.now():
            due, piece = self._waiting.popleft()
            if not piece:
                self._finish()
                return
            try:
                sent = self._sink.socket.send(piece)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.broken()
                return
            self._held -= sent
            self.carried(sent)
            if self.over:
                return  # these bytes were more than the line was to carry
            if sent < len(piece):
                self._waiting.appendleft((due, piece[sent:]))
                self._sink.wants(selectors.EVENT_WRITE, True)
                return
        self._sink.wants(selectors.EVENT_WRITE, False)
        self._wait_for_first()
        self._resume()

    def _finish(self) -> None:
        self.stop()
        try:
            self._sink.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.broken()
        else:
            self._sink.wants(selectors.EVENT_WRITE, False)
            self.ended()
