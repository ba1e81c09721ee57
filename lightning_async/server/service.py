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

from lightning_async.errors import ConfigError
from lightning_async.server.actions import Action, Emit, Event, Gone, Limit, Received, Send, Stop, Tick
from lightning_async.server.coordinator import Coordinator
from lightning_async.server.keeper import Keeper
from lightning_async.server.probing import Probes
from lightning_async.server.reception import Duties, Reception
from lightning_async.server.recorder import Recorder
from lightning_async.telemetry import Sink, events
from lightning_async.transport.base import Listener
from lightning_async.transport.freight import Freight
from lightning_async.wire.frames import Envelope, FrameError, VersionError, pack, unpack
from lightning_async.wire.messages import Hello, Reason, Refused
from lightning_async.wire.parts import PARTS, Chunk, Offer

TICK_S = 0.1
GOODBYE_S = 5.0  # how long workers have to hear that the run is over
LOUD = (  # for people to act on
    events.Advised, events.Changed, events.Waiting, events.Enough, events.Quarantined, events.Released, events.Unused,
)  # fmt: skip
log = logging.getLogger(__name__)


class Service:
    """A running server over one listener.

    Args:
        coordinator: the run.
        listener: closed by `close`.
        sinks: told every event.
        clock: seconds, monotonic.
        keeper: looks at the run after every tick, and once more at the end.
        recorder: of the coordinator's events; nobody is told of one that is not durable.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        listener: Listener,
        sinks: Iterable[Sink] = (),
        clock: Callable[[], float] = time.monotonic,
        keeper: Keeper | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.coordinator, self._listener, self._sinks, self._clock = coordinator, listener, tuple(sinks), clock
        self._keeper, self._recorder = keeper, recorder
        keep_s = 10 * coordinator.run.config.patience_s
        self._freight = Freight(lambda peer, frames: listener.send(peer, frames), self._name_of, clock, keep_s=keep_s)
        self._brain: Coordinator | Recorder = coordinator if recorder is None else recorder
        self._held: deque[tuple[int, Sequence[Action]]] = deque()  # actions, and the record they have to wait for
        if recorder is not None:
            recorder.commits.told = self.wake
        self._paused_s = 0.0  # while the journal took nothing: no time at all for the coordinator
        self._next_tick = 0.0
        self._stopped = self._releasing = False
        self._pardons: deque[tuple[str, Future[None]]] = deque()
        self._halted = ""  # why, once the owner has ordered it
        run, order = coordinator.run, lambda values: self._perform(self._brain.change(values, self._now()))
        duties = Duties(self._halt, self._hurry, self._perform_pardon, change=order)
        token, probes = run.rules.private.token, Probes(lambda: run.layout)
        self._reception = Reception(listener.door, token, duties, run.ack, probes)
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
        while not (why := self._halted or go_on()) and not self._stopped:
            self.turn()
        self._perform(self._brain.stop(why or "stopped", self._now()))
        self._settle()
        deadline = self._clock() + GOODBYE_S
        while self.coordinator.run.members.workers() and self._clock() < deadline:
            self.turn()
            if hurry():
                break

    def turn(self) -> None:
        """One message or one tick, whichever comes first; blocks for TICK_S at most."""
        self._release()
        if self._recorder is not None and not self._recorder.has_room:
            self._pause(self._recorder)
            return
        while self._pardons:
            self._pardon(*self._pardons.popleft())
        got = self._listener.receive(max(0.0, min(TICK_S, self._next_tick - self._clock())))
        if got is not None and self._reception.hears(got[0]):
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
        """Let journal and keeper finish, free the port and the sinks. Idempotent."""
        self._settle()
        self._listener.close()
        self._held.clear()
        if self._keeper is not None:
            self._keeper.close(self.coordinator.run)
        if self._recorder is not None:
            self._recorder.close()
        for sink in self._sinks:
            sink.close()

    def _take(self, peer: bytes, frames: Sequence[memoryview]) -> None:
        try:
            envelope = unpack(frames)
        except FrameError as error:
            self._answer_damaged(peer, error)
            return
        try:
            answer = self._reception.receive(peer, envelope)
            if answer is not None:
                self._perform([Send(peer, answer)])
            elif isinstance(envelope.message, PARTS):
                self._part(peer, envelope)
            else:
                if isinstance(envelope.message, Hello) and envelope.message.chunks:
                    self._freight.takers.add(peer)
                before = self._name_of(peer)
                self._handle(Received(peer, self._reception.owned(peer, envelope)))
                if before and before != self._name_of(peer):
                    self._freight.part_with(before)
        except FrameError as error:
            self._answer_damaged(peer, error)
        except Exception:
            self._complain(type(envelope.message).__name__)
            self._answer(peer, envelope.id, Reason.INTERNAL, "the server failed on this request; its log says why")

    def _name_of(self, peer: bytes) -> str:
        """The member that speaks through `peer`; empty for nobody."""
        member = self.coordinator.run.members.of(peer)
        return member.name if member is not None and member.alive else ""

    def _part(self, peer: bytes, envelope: Envelope) -> None:
        """A chunk is no event of the run: only what it completes, or what cannot become one any more, is."""
        if not self._name_of(peer):
            if isinstance(envelope.message, Offer | Chunk):
                self._answer(peer, envelope.id, Reason.STRANGER, "chunks of a message, of nobody here: say Hello")
            return
        whole = self._freight.take(peer, envelope)
        if whole is not None:
            self._take(peer, whole)
        elif isinstance(envelope.message, Offer):
            self._spare()

    def _spare(self) -> None:
        """Answer what needs no more of its payload to be answered, so that its sender stops sending."""
        for peer, envelope in list(self._freight.arriving()):
            if self.coordinator.foregone(peer, envelope.message):
                self._freight.forget(peer, envelope.id)
                self._handle(Received(peer, envelope))

    def _halt(self, why: str) -> None:
        self._halted = why

    def _hurry(self) -> None:
        if self._keeper is None:
            raise ConfigError("this server has no state_dir to keep a snapshot in")
        self._keeper.hurry()

    def _perform_pardon(self, name: str) -> None:
        self._perform(self._brain.pardon(name, self._now()))

    def _show_out(self) -> None:
        """Members whose key was revoked, or lost its role or name, are counted out at once."""
        names = self._reception.shown_out(self.coordinator.run.members)
        if names:
            self._perform(self._brain.expel(names, "the list of keys lets it in no more", self._now()))

    def _pardon(self, worker: str, asked: Future[None]) -> None:
        try:
            self._perform_pardon(worker)
            asked.set_result(None)
        except Exception as error:
            asked.set_exception(error)

    def _tick(self) -> None:
        try:
            self._show_out()
            self._handle(Tick())
            self._spare()
            self._freight.tick()
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
        self._reception.damaged(peer)
        level = logging.WARNING if self.damaged & (self.damaged - 1) == 0 else logging.DEBUG  # 1st, 2nd, 4th, 8th ...
        log.log(level, "message %d that could not be read: %s", self.damaged, error)
        if error.request:
            reason = Reason.VERSION if isinstance(error, VersionError) else Reason.PROTOCOL
            self._answer(peer, error.request, reason, str(error))

    def _answer(self, peer: bytes, request: int, reason: Reason, detail: str) -> None:
        self._perform([Send(peer, Envelope(request, Refused(reason=reason.value, detail=detail)))])

    def _handle(self, event: Event) -> None:
        self._perform(self._brain.handle(event, self._now()))

    def _settle(self) -> None:
        """Give the journal the time to write what it can, and do what has waited for it."""
        if self._recorder is not None:
            self._recorder.settle()
        self._release()

    def _now(self) -> float:
        return self._clock() - self._paused_s

    def _pause(self, recorder: Recorder) -> None:
        """Wait a little for a journal that has more than enough to write, or cannot."""
        began = self._clock()
        recorder.wait(TICK_S)
        self._paused_s += max(0.0, self._clock() - began)

    def _tell(self, event: events.Event) -> None:
        """A sink that cannot write (a full disk) is dropped with an error in the log; the run goes on without it."""
        for sink in self._sinks:
            try:
                sink.write(event)
            except (OSError, ValueError) as error:
                log.error("%s takes no more events: %s", type(sink).__name__, error)
                self._sinks = tuple(other for other in self._sinks if other is not sink)

    def _perform(self, actions: Sequence[Action]) -> None:
        """Do it, once everything is durable that it may tell of; in order."""
        self._held.append((0 if self._recorder is None else self._recorder.submitted, actions))
        self._release()

    def _release(self) -> None:
        if self._releasing:
            return  # what an action leads to is done after the others, by the loop further out
        self._releasing = True
        try:
            while self._held and (self._recorder is None or self._held[0][0] <= self._recorder.durable):
                self._do(self._held.popleft()[1])
        finally:
            self._releasing = False

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send(peer, envelope, sums):
                    completed = self._reception.completed(envelope, self._freight.under_way())
                    if not self._freight.send(peer, pack(completed, sums)):
                        self._handle(Gone(peer))
                case Emit(event):
                    log.log(_level(event), "%s", event)
                    self._tell(event)
                case Limit(largest):
                    self._freight.largest_bytes = largest
                    self._listener.limit(largest)
                case Stop():
                    self._stopped = True


def _level(event: events.Event) -> int:
    return logging.WARNING if isinstance(event, LOUD) else logging.DEBUG
