"""Requests that get their answer: ids, retries, rejoining, and knowing when the other side is away.

A connection keeps the order of its messages, so a Beat that is answered proves that everything sent before it has
arrived: what is still unanswered then was lost and is sent again (the server answers a repeated Push from memory).
When nothing at all comes for longer than the bytes under way can explain, the connection is dialled anew; a server
that does not know us any more is greeted again, and the unanswered requests follow. A request that the server
could not read may have been altered on the way, and one on which it failed may have been done, so both are repeated,
under the same id and sequence number, a few times before the refusal is believed. What is large goes in chunks
(transport/freight.py): a request, or an answer, of which a part is there is completed and not asked for again.

Rule of this file: it belongs to one thread (the courier's), blocks only in `pump`, and only for as long as it is told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from lightning_async.errors import AsyncWANError, NetworkError, ProtocolError, RefusedError, UnreachableError
from lightning_async.transport.base import Connection, Frame, Traffic, hint
from lightning_async.transport.freight import Freight
from lightning_async.wire.frames import Envelope, FrameError, pack, unpack
from lightning_async.wire.messages import (
    Ack,
    Beat,
    Hello,
    Leave,
    Pull,
    Reason,
    Refused,
    Reply,
    Request,
    Status,
    Welcome,
)
from lightning_async.wire.parts import PARTS
from lightning_async.wire.session import fits
from lightning_async.worker.calls import Call, Gauge, Then, in_chunks, most_wanted, under_way
from lightning_async.worker.patience import REJOIN_FACTOR, join_patience_s, run_patience_s, silence_s

HINT_S = 3.0
HELLO_S = 3.0  # until a Hello without an answer is said again; then ever later
SERVER = b""  # the one peer of a link
MOST_ARRIVING = 4  # answers that come in chunks at a time
log = logging.getLogger(__name__)


class Link:
    """The worker's side of the conversation.

    Args:
        dial: makes a connection; called again after a silence.
        hello: the greeting; `welcomed` is told every Welcome, the first and those after a rejoin.
        heard: told every Ack that answers a Beat.
        reply_bytes: size of the largest usual answer, for judging silence.
        patience_s: for a server that never answered; None: JOIN_PATIENCE_S, or what the environment says.
        rejoin_patience_s: for one that did; None: ten times the run's `patience_s`.
    """

    def __init__(
        self,
        dial: Callable[[], Connection],
        hello: Hello,
        welcomed: Callable[[Welcome], None],
        heard: Callable[[Ack], None],
        address: str,
        reply_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float | None = None,
        rejoin_patience_s: float | None = None,
    ) -> None:
        self._dial, self._hello, self._welcomed, self._heard = dial, hello, welcomed, heard
        self._address, self._reply_bytes, self._clock = address, reply_bytes, clock
        self._patience_s = join_patience_s() if patience_s is None else patience_s
        self._run_patience_s, self._rejoin_patience_s = run_patience_s({}), rejoin_patience_s
        self.connection = dial()
        self._freight = Freight(self._put, clock=clock, room=MOST_ARRIVING, keep_s=self._run_patience_s,
                                wanted=lambda id: most_wanted(self._calls.get(id), self._reply_bytes))  # fmt: skip
        self.joined, self.gauge = False, Gauge()
        self._away = False  # since a redial or since the server forgot us
        self.damaged, self._beat_s, self._dialled = 0, 1.0, 0  # the last: anew, since something was answered
        self._calls: dict[int, Call] = {}
        self._queue: list[Call] = []  # asked before we are in
        self._next_id = self._turn = 0
        self._before = Traffic()  # of connections given up
        self._last_heard, self._next_beat, self._hinted = clock(), 0.0, False
        self.greet()

    @property
    def due_at(self) -> float:
        """When `pump` has something to do although nothing comes."""
        return self._next_beat if self.joined else self._clock() + HELLO_S

    def request(self, message: Request, then: Then, payload: tuple[Frame, ...] = ()) -> None:
        """Ask; `then` gets the answer, a Refused included. It is never called twice and never for a lost answer."""
        self._next_id += 1
        call = Call(self._next_id, message, payload, then)
        if self.joined or isinstance(message, (Hello, Status)):
            self._send(call)
        else:
            self._queue.append(call)

    def pump(self, timeout_s: float) -> None:
        """Receive for at most `timeout_s`, handle what came, then do what time asks for.

        Raises RefusedError when the server does not let us in, or takes our key no more, UnreachableError when nobody
        has answered for too long, NetworkError when its owner says that the server is gone for good.
        """
        frames = self.connection.receive(timeout_s)
        while frames is not None:
            self._take(frames)
            frames = self.connection.receive(0.0)
        now = self._clock()
        if self.joined and now >= self._next_beat:
            self._beat(now)
        for call in [] if self.joined else list(self._calls.values()):
            if isinstance(call.message, Hello) and now - call.sent_at > HELLO_S * (1 + call.repeats):
                call.repeats += 1
                self._send(call)
        self._freight.tick()
        self._judge_silence(now)

    @property
    def arriving(self) -> bool:
        """Whether an answer is here in part."""
        return any(True for _ in self._freight.arriving())

    def traffic(self) -> Traffic:
        """Bytes at the socket since the start, over all connections."""
        now = self.connection.traffic()
        return Traffic(self._before.sent_bytes + now.sent_bytes, self._before.received_bytes + now.received_bytes)

    def close(self, why: str, wait_s: float) -> None:
        """Say goodbye, wait up to `wait_s` for the answer so that it is sure to have left, and hang up."""
        try:
            if self.joined:
                self._say_goodbye(why, self._clock() + wait_s)
        except AsyncWANError as error:
            log.debug("while leaving %s: %s", self._address, error)
        finally:
            self.connection.close()

    def _say_goodbye(self, why: str, deadline: float) -> None:
        done: list[Reply] = []
        while any(self._freight.leaving(id) for id in self._calls) and self._clock() < deadline:
            self.pump(0.05)  # or the goodbye would overtake it
        traffic = self.traffic()
        leave = Leave(why=why, sent_bytes=traffic.sent_bytes, received_bytes=traffic.received_bytes)
        self.request(leave, lambda reply, _: done.append(reply))
        while not done and self._clock() < deadline:
            frames = self.connection.receive(0.05)
            if frames is not None:
                self._take(frames)
        waiting = sum(reply.waiting for reply in done if isinstance(reply, Ack))
        if waiting:
            log.warning("%d local steps of this worker wait for others: they count only if enough come", waiting)

    def greet(self) -> None:
        """Say Hello; what is asked meanwhile waits for the Welcome."""
        self.joined, self._freight.held = False, True
        hello = replace(self._hello, chunks=self.connection.cuts)
        self.request(hello, self._on_hello)

    def _on_hello(self, reply: Reply, payload: tuple[Frame, ...]) -> None:
        if isinstance(reply, Refused):
            raise RefusedError(reply.reason, f"{self._address} does not let this worker in: {reply.detail}")
        assert isinstance(reply, Welcome)
        self.joined, self._beat_s, self._run_patience_s = True, reply.beat_s, run_patience_s(reply.config)
        self._patience_s = self._rejoin_patience_s or REJOIN_FACTOR * self._run_patience_s
        self._freight.keep_s, self._freight.takers = self._run_patience_s, {SERVER} if reply.chunks else set()
        if self._away:
            log.warning("joined %s again as %r", self._address, self._hello.worker)
        self._away = self._hinted = False
        self._welcomed(reply)
        waiting = [*self._calls.values(), *self._queue]
        self._queue.clear()
        self._freight.go_on()
        for call in sorted(waiting, key=lambda call: call.id):
            if not in_chunks(self._freight, call.id):
                self._send(call)

    def _send(self, call: Call) -> None:
        self._turn += 1
        call.turn, call.sent_at = self._turn, self._clock()
        call.gone_at = call.sent_at
        call.alone = all(isinstance(other.message, Pull) for other in self._calls.values())
        if not call.frames:
            call.frames = pack(Envelope(call.id, call.message, call.payload))
        self._calls[call.id] = call
        self._freight.send(SERVER, call.frames)

    def _put(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        self.connection.send(frames)
        return True

    def _take(self, frames: list[memoryview]) -> None:
        self._last_heard = self._clock()
        try:
            envelope = unpack(frames)
            if isinstance(envelope.message, PARTS):
                self._part(envelope)
                return
        except FrameError as error:
            self.damaged += 1
            log.warning("an answer of %s could not be read: %s", self._address, error)
            return
        call, reply = self._calls.get(envelope.id), envelope.message
        if isinstance(reply, Refused) and reply.reason == Reason.LOST.value:
            raise NetworkError(f"the server at {self._address} is gone, and the run ends here: {reply.detail}")
        if call is None:
            return  # the second answer to a request that was sent twice
        if not fits(call.message, reply):
            raise ProtocolError(f"{self._address} answered {type(call.message).__name__} by {type(reply).__name__}")
        if isinstance(reply, Refused) and reply.reason == Reason.STRANGER.value and not isinstance(call.message, Leave):
            self._rejoin()
            return
        if isinstance(reply, Refused) and reply.reason == Reason.KEY.value:
            raise RefusedError(reply.reason, f"{self._address} takes nothing from this worker: {reply.detail}")
        if isinstance(reply, Refused) and call.bears(reply.reason, self._freight):
            self._send(call)
            return
        del self._calls[call.id]
        self._dialled *= isinstance(call.message, (Beat, Hello))  # what takes its time has come through
        self._freight.cancel(call.id)
        self._freight.forget(SERVER, call.id)
        self.gauge.note(call, envelope.payload, self._clock())
        call.then(reply, envelope.payload)  # type: ignore[arg-type]

    def _part(self, envelope: Envelope) -> None:
        """A part of a large answer, or what the server has of a large request."""
        leaving = self._freight.leaving(envelope.id)
        if (whole := self._freight.take(SERVER, envelope)) is not None:
            self._take(whole)
        call = self._calls.get(envelope.id)
        if leaving is not None and leaving.done and call is not None:  # its answer follows what is sent from now on
            self._turn += 1
            call.turn, call.gone_at = self._turn, self._clock()

    def _rejoin(self) -> None:
        if self.joined:
            log.warning("%s does not know this worker any more; joining again", self._address)
            self._away = True
            self._freight.thin(SERVER)
            self.greet()

    def _beat(self, now: float) -> None:
        """Send a Beat; while none is answered the next ones come ever later, since they too may have been lost."""
        traffic = self.traffic()
        unanswered = sum(1 for call in self._calls.values() if isinstance(call.message, Beat))
        self._next_beat = now + self._beat_s * (1 + unanswered)
        beat = Beat(sent_bytes=traffic.sent_bytes, received_bytes=traffic.received_bytes)
        self._next_id += 1
        turn = self._turn + 1
        self._send(Call(self._next_id, beat, (), lambda reply, _: self._on_beat(reply, turn)))

    def _on_beat(self, reply: Reply, turn: int) -> None:
        """The Beat sent as number `turn` is answered, so whatever was sent before it has arrived or was lost."""
        if not isinstance(reply, Ack):
            return
        now = self._clock()
        for call in [call for call in self._calls.values() if call.turn < turn]:
            if isinstance(call.message, Beat):
                del self._calls[call.id]
            elif call.lost(now, self._beat_s) and not in_chunks(self._freight, call.id):
                log.info("%s was lost on the way; sending it again", type(call.message).__name__)
                self._send(call)
        self._heard(reply)

    def _judge_silence(self, now: float) -> None:
        silent = now - self._last_heard
        if not self.joined and silent > HINT_S and not self._hinted:
            self._hinted = True
            left, why = self._patience_s - silent, hint(self.connection)
            log.warning("no answer from %s yet; trying for %.0f s more. %s", self._address, left, why)
        if not self._calls:
            return
        if silent > self._patience_s:
            raise UnreachableError(f"nobody answered at {self._address} for {silent:.0f} s. {hint(self.connection)}")
        rate, rtt_s = self.gauge.bytes_per_s.value or self._freight.speed(SERVER), self.gauge.rtt_s.value
        oldest = min(call.sent_at for call in self._calls.values())
        moving = under_way(self._calls.values(), self._freight, self._reply_bytes, rate)
        if min(silent, now - oldest) > silence_s(self._run_patience_s, moving, rate, rtt_s, self._dialled):
            self._redial()

    def _redial(self) -> None:
        log.warning("%s has been silent for too long; dialling again", self._address)
        self._away, self._dialled = True, self._dialled + 1
        self._freight.thin(SERVER)
        self._before = self.traffic()
        self.connection.close()
        self.connection = self._dial()
        self._calls = {id: call for id, call in self._calls.items() if not isinstance(call.message, (Beat, Hello))}
        self.greet()
