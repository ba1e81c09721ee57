"""The two ends of a simulated line, with the contract of `transport.base`, and the runner of a simulated worker.

What is sent arrives as an event of the clock. A worker's courier is carried on by those events and by its own due
times; the server's service turns once for each message. Nothing here blocks but what an actor waits for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

from lightning_async.errors import NetworkError
from lightning_async.simulation.clock import Clock
from lightning_async.simulation.network import FRAME_BYTES, Path
from lightning_async.transport.base import Connection, Count, Frame, Listener, Traffic
from lightning_async.wire.frames import read_only
from lightning_async.worker.world import Runner


class Carrier(Runner):
    """Carries one worker's courier on, in events of `clock`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._turn: Callable[[float], bool] | None = None
        self._due_at: Callable[[], float] = lambda: math.inf
        self._next = math.inf  # when the next turn is put down
        self._over: Callable[[], bool] | None = None  # what the actor waits for
        self._actor = clock.actor
        self._alive = False

    def start(self, turn: Callable[[float], bool], due_at: Callable[[], float]) -> None:
        self._turn, self._due_at, self._alive = turn, due_at, True
        self.look()

    def look(self, within_s: float = 0.0) -> None:
        """Something has come: turn, `within_s` seconds from now at the latest."""
        self._turn_at(self._clock.now + within_s)

    def _turn_at(self, time: float) -> None:
        if self._alive and time < self._next:
            self._next = time
            self._clock.at(time, lambda: self._go(time))

    def _go(self, time: float) -> None:
        if self._alive and time == self._next:
            self._next = math.inf
            self.turn()

    def turn(self) -> None:
        assert self._turn is not None
        self._alive = self._turn(0.0)
        if self._alive:
            self._turn_at(max(self._due_at(), self._clock.now))

    def changed(self) -> None:
        if self._over is not None and self._over():
            self._over = None
            self._clock.wake(self._actor)

    def pause(self, over: Callable[[], bool], timeout_s: float) -> None:
        self._over = over
        try:
            self._clock.wait(self._clock.now + timeout_s if timeout_s < 1e6 else math.inf)
        finally:
            self._over = None

    def give_up(self) -> None:
        """The actor is to look whether its wait was given up."""
        if self._over is not None:
            self._clock.wake(self._actor)

    @property
    def started(self) -> bool:
        return self._turn is not None

    def join(self, timeout_s: float) -> bool:
        if self._alive and self._turn is not None:
            self._alive = False  # what comes from now on is read by whoever says goodbye
            while self._turn(0.0):
                pass
        return True


class Gate(Listener):
    """The server's end. `arrived` is called when there is a message to `receive`."""

    address = "sim://server"

    def __init__(self, clock: Clock, arrived: Callable[[], None]) -> None:
        self._clock, self._arrived = clock, arrived
        self._inbox: deque[tuple[bytes, list[memoryview]]] = deque()
        self._lines: dict[bytes, Line] = {}
        self._numbers = 0

    def admit(self, line: Line) -> bytes:
        """The key of a new peer."""
        self._numbers += 1
        peer = self._numbers.to_bytes(8, "big")
        self._lines[peer] = line
        return peer

    def take(self, peer: bytes, frames: list[memoryview]) -> None:
        """A message has arrived."""
        if peer in self._lines:
            self._inbox.append((peer, frames))
            self._arrived()

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        return self._inbox.popleft() if self._inbox else None

    def send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        line = self._lines.get(peer)
        if line is not None:
            line.take(read_only(frames))
        return line is not None

    def wake(self) -> None: ...

    def limit(self, largest_message_bytes: int) -> None: ...

    def forget(self, peer: bytes) -> None:
        """Its line has hung up."""
        self._lines.pop(peer, None)

    def close(self) -> None:
        self._lines.clear()


class Line(Connection):
    """A worker's end: `up` leads to the server, `down` back."""

    def __init__(self, clock: Clock, gate: Gate, up: Path, down: Path, carrier: Carrier) -> None:
        self._clock, self._gate, self._up, self._down, self._carrier = clock, gate, up, down, carrier
        self._inbox: deque[list[memoryview]] = deque()
        self._count = Count()
        self._peer = gate.admit(self)
        self._open = True

    def send(self, frames: Sequence[Frame]) -> None:
        if not self._open:
            raise NetworkError("this end is closed")
        views, size = read_only(frames), _size(frames)
        self._count.sent += size
        self._clock.at(self._up.arrival(size, self._clock.now), lambda: self._gate.take(self._peer, views))

    def take(self, frames: list[memoryview]) -> None:
        """The server has sent something; it will be here in time."""
        size = _size(frames)

        def arrive() -> None:
            if self._open:
                self._count.received += size
                self._inbox.append(frames)
                self._carrier.look()

        self._clock.at(self._down.arrival(size, self._clock.now), arrive)

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        if not self._inbox and timeout_s > 0:
            self._clock.sleep(timeout_s)
        return self._inbox.popleft() if self._inbox else None

    def wake(self) -> None:
        self._carrier.look()

    def traffic(self) -> Traffic:
        return self._count.traffic()

    def close(self) -> None:
        self._open = False
        self._gate.forget(self._peer)


def _size(frames: Sequence[Frame]) -> int:
    """Bytes on the line, the transport's framing included; TCP's and IP's own headers, about 3 %, are not."""
    return sum(memoryview(frame).nbytes + FRAME_BYTES for frame in frames)
