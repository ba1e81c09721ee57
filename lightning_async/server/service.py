"""The loop that owns the socket, the clock and the sinks, and performs what the coordinator decides.

One thread. It takes a message, gives it to the coordinator, sends what follows; now and then it tells the coordinator
the time. Bytes that are no message, a peer that has gone, a full queue and a bug in a handler each concern one peer
and never stop the loop.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

from lightning_async.server.actions import Action, Emit, Event, Gone, Limit, Received, Send, Stop, Tick
from lightning_async.server.coordinator import Coordinator
from lightning_async.server.keeper import Keeper
from lightning_async.telemetry import Sink, events
from lightning_async.transport.base import Listener
from lightning_async.wire.frames import Envelope, FrameError, VersionError, pack, unpack
from lightning_async.wire.messages import Reason, Refused

TICK_S = 0.1
GOODBYE_S = 5.0  # how long workers have to hear that the run is over
LOUD = (events.Waiting, events.Enough, events.Quarantined, events.Released)  # what a person may have to act on
log = logging.getLogger(__name__)


class Service:
    """A running server over one listener.

    Args:
        coordinator: the run.
        listener: closed by `close`.
        sinks: told every event.
        clock: seconds, monotonic.
        keeper: looks at the run after every tick, and once more at the end.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        listener: Listener,
        sinks: Iterable[Sink] = (),
        clock: Callable[[], float] = time.monotonic,
        keeper: Keeper | None = None,
    ) -> None:
        self.coordinator, self._listener, self._sinks, self._clock = coordinator, listener, tuple(sinks), clock
        self._keeper = keeper
        self._next_tick = 0.0
        self._stopped = False
        self._pardons: deque[tuple[str, Future[None]]] = deque()
        self.damaged = 0  # messages that could not be read
        self.failures = 0  # exceptions in the coordinator, each a bug

    @property
    def address(self) -> str:
        """Where workers dial."""
        return self._listener.address

    def serve(self, go_on: Callable[[], str], hurry: Callable[[], bool] = lambda: False) -> None:
        """Serve until `go_on()` gives a reason to stop (empty: none yet), say so to the workers, and return.

        It is asked about ten times a second. Workers get GOODBYE_S seconds to leave after that, unless `hurry()`:
        then one tick, so that what was said leaves the socket.
        """
        while not (why := go_on()) and not self._stopped:
            self.turn()
        self._perform(self.coordinator.stop(why or "stopped", self._clock()))
        deadline = self._clock() + GOODBYE_S
        while self.coordinator.run.members.workers() and self._clock() < deadline:
            self.turn()
            if hurry():
                break

    def turn(self) -> None:
        """One message or one tick, whichever comes first; blocks for TICK_S at most."""
        while self._pardons:
            self._pardon(*self._pardons.popleft())
        got = self._listener.receive(max(0.0, min(TICK_S, self._next_tick - self._clock())))
        if got is not None:
            self._take(*got)
        if self._clock() >= self._next_tick:
            self._next_tick = self._clock() + TICK_S
            self._tick()

    def pardon(self, worker: str) -> Future[None]:
        """As `Coordinator.pardon`, from any thread: done between two messages, by the thread that serves."""
        asked: Future[None] = Future()
        self._pardons.append((worker, asked))
        self.wake()
        return asked

    def wake(self) -> None:
        """Make a waiting `turn` return; may be called from any thread."""
        self._listener.wake()

    def close(self) -> None:
        """Free the port, let the keeper finish, free the sinks. Idempotent."""
        self._listener.close()
        if self._keeper is not None:
            self._keeper.close(self.coordinator.run)
        for sink in self._sinks:
            sink.close()

    def _take(self, peer: bytes, frames: Sequence[memoryview]) -> None:
        try:
            envelope = unpack(frames)
        except FrameError as error:
            self._answer_damaged(peer, error)
            return
        try:
            self._handle(Received(peer, envelope))
        except Exception:
            self._complain(type(envelope.message).__name__)
            self._answer(peer, envelope.id, Reason.INTERNAL, "the server failed on this request; its log says why")

    def _pardon(self, worker: str, asked: Future[None]) -> None:
        try:
            self._perform(self.coordinator.pardon(worker, self._clock()))
            asked.set_result(None)
        except Exception as error:
            asked.set_exception(error)

    def _tick(self) -> None:
        try:
            self._handle(Tick())
            if self._keeper is not None:
                self._keeper.look(self.coordinator.run, self._clock())
        except Exception:
            self._complain("a tick")

    def _complain(self, what: str) -> None:
        """Log the exception at hand: the first of the run whole, and after the 2nd, 4th, 8th ... that it goes on."""
        self.failures += 1
        if self.failures & (self.failures - 1) == 0:
            log.exception("failure %d of the server itself, on %s; the run goes on", self.failures, what)

    def _answer_damaged(self, peer: bytes, error: FrameError) -> None:
        self.damaged += 1
        level = logging.WARNING if self.damaged & (self.damaged - 1) == 0 else logging.DEBUG  # 1st, 2nd, 4th, 8th ...
        log.log(level, "message %d that could not be read: %s", self.damaged, error)
        if error.request:
            reason = Reason.VERSION if isinstance(error, VersionError) else Reason.PROTOCOL
            self._answer(peer, error.request, reason, str(error))

    def _answer(self, peer: bytes, request: int, reason: Reason, detail: str) -> None:
        self._listener.send(peer, pack(Envelope(request, Refused(reason=reason.value, detail=detail))))

    def _handle(self, event: Event) -> None:
        self._perform(self.coordinator.handle(event, self._clock()))

    def _tell(self, event: events.Event) -> None:
        """A sink that cannot write (a full disk) is dropped with an error in the log; the run goes on without it."""
        for sink in self._sinks:
            try:
                sink.write(event)
            except (OSError, ValueError) as error:
                log.error("%s takes no more events: %s", type(sink).__name__, error)
                self._sinks = tuple(other for other in self._sinks if other is not sink)

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send(peer, envelope, sums):
                    if not self._listener.send(peer, pack(envelope, sums)):
                        self._handle(Gone(peer))
                case Emit(event):
                    log.log(_level(event), "%s", event)
                    self._tell(event)
                case Limit(largest):
                    self._listener.limit(largest)
                case Stop():
                    self._stopped = True


def _level(event: events.Event) -> int:
    return logging.WARNING if isinstance(event, LOUD) else logging.DEBUG
