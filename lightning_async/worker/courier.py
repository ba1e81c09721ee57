"""The background thread that carries updates and parameters while training goes on.

It owns the link and the codecs' states. The main thread hands it at most one update at a time (`exchange`), asks small
questions (`ask`), and collects what has come (`collect`). Whatever goes wrong in here is raised to the main thread by
its next `check`, never swallowed.

Lightning changes process-global torch state during a step (default dtype, no_grad); nothing in this file depends on it:
vectors come detached, and every tensor that is made here has its dtype written out.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable

import torch

from lightning_async.codecs import codec
from lightning_async.config import read_config
from lightning_async.errors import AsyncWANError, CallerError, NetworkError
from lightning_async.layout import Layout
from lightning_async.transport.base import Frame, Traffic
from lightning_async.wire.messages import Ack, Pull, Reason, Reply, Request, Welcome
from lightning_async.worker.downloading import Downloads
from lightning_async.worker.link import Link
from lightning_async.worker.parcels import Forgotten, Outcome, Ticket, Update, check_run, receipt_in, riding
from lightning_async.worker.replica import Arrival
from lightning_async.worker.uploading import Uploads
from lightning_async.worker.world import REAL, World

GOODBYE_S = 1.0
log = logging.getLogger(__name__)


class Courier:
    """One worker's background thread.

    Args:
        link: makes the link in the courier's thread, given what to call on a Welcome and on a Beat's answer.
        layout: of what is shared; an observer's has no tensors.
        world: whose clock is read and whose runner calls `turn`.
    """

    def __init__(
        self,
        link: Callable[[Callable[[Welcome], None], Callable[[Ack], None]], Link],
        layout: Layout,
        world: World = REAL,
    ) -> None:
        self._make_link, self._layout, self._clock, self._runner = link, layout, world.clock, world.runner()
        self._notify = self._runner.changed
        self.welcome: Welcome | None = None
        self._acknowledged = 0
        self._jobs: deque[Callable[[], None]] = deque()
        self._outcomes: deque[Outcome | Forgotten] = deque()
        self._busy = 0  # requests of the exchange that are not answered
        self._error: BaseException | None = None
        self._closing, self._goodbye_s = "", GOODBYE_S
        self._ended, self._lock = False, threading.Lock()
        self._uploads: Uploads | None = None
        self._waited_s = self._waited_before_s = 0.0  # by the main thread; until the last exchange
        self._exchange_s, self._began = 0.0, math.inf  # of the last one; when this one began
        self._link: Link | None = None
        self._downloads = Downloads(
            layout, self._pull, lambda: self._require_link().gauge.bytes_per_s.value, world.clock
        )
        self.traffic, self.bytes_per_s = Traffic(), 0.0  # at the socket so far; of the line, as far as it was measured

    # What follows, down to `close`, is called by the main thread.

    def start(self) -> None:
        """Begin to dial."""
        self._runner.start(self.turn, self._due_at)

    @property
    def idle(self) -> bool:
        """Whether the last update has its receipt and the parameters after it are here."""
        return self._busy == 0

    @property
    def stop_asked(self) -> bool:
        """Whether the server has said that the run is over."""
        return self._downloads.stop_asked

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._error is not None:
            raise self._error

    def wait(self, ready: Callable[[], bool], give_up: Callable[[], bool], timeout_s: float = 1e9) -> bool:
        """Wait until `ready()`; False when `give_up()` or the time is over first.

        Raises what went wrong in the background, and NetworkError after `close`.
        """
        began = self._clock()
        try:
            return self._wait(ready, give_up, began + timeout_s)
        finally:
            self._waited_s += self._clock() - began

    def _wait(self, ready: Callable[[], bool], give_up: Callable[[], bool], deadline: float) -> bool:
        while True:
            self.check()
            if ready():
                return True
            if self._ended:
                raise NetworkError("this worker has left the run, so nobody answers any more")
            left = deadline - self._clock()
            if give_up() or left <= 0:
                return False
            self._runner.pause(ready, left)

    def ask(self, message: Request, payload: tuple[Frame, ...] = ()) -> Ticket:
        """Send a small request; its ticket is done when the answer is there."""
        ticket = Ticket()
        self._post(lambda: self._require_link().request(message, lambda r, p: self._answer(ticket, r, p), payload))
        return ticket

    def greet(self) -> None:
        """Say Hello again; `welcome` becomes the new answer."""
        self._post(lambda: self._require_link().greet())

    def exchange(self, update: Update, wait_newer: bool = False) -> None:
        """Send an update and fetch the parameters after it; with `wait_newer` only once they are newer than ours."""
        self._owe(2)
        compute_s = max(0.0, update.push.round_s - (self._waited_s - self._waited_before_s))
        self._waited_before_s = self._waited_s
        measured = update.measured(compute_s, self._exchange_s)
        self._post(lambda: self._push(measured, wait_newer, compute_s))

    @property
    def has_news(self) -> bool:
        """Whether `collect` would return anything."""
        return bool(self._outcomes or self._downloads.arrivals)

    def pull(self) -> None:
        """Fetch the newest parameters."""
        self._owe(1)
        self._post(lambda: self._downloads.fetch(self._answered))

    def forget(self) -> None:
        """Fetch a whole snapshot: what this worker holds is not what the server published."""
        self._owe(1)
        self._post(lambda: self._downloads.forget(self._answered))

    def collect(self) -> tuple[list[Outcome | Forgotten], list[Arrival]]:
        """What has come since the last call, in order."""
        outcomes = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
        waiting = self._downloads.arrivals
        arrivals = [waiting.popleft() for _ in range(len(waiting))]
        return outcomes, arrivals

    def close(self, why: str, goodbye_s: float = GOODBYE_S) -> None:
        """Say goodbye, which the server may take `goodbye_s` to answer, and end the thread. Idempotent.

        Raises NetworkError if the thread does not end.
        """
        if not self._closing and self._runner.started:
            self._goodbye_s, self._closing = goodbye_s, why or "closed"
            self._post(lambda: None)
        if self._runner.started and not self._runner.join(goodbye_s + 8.0):
            raise NetworkError("the courier's thread did not end; please report this with a stack dump")

    def _post(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        link = self._link
        if link is not None:
            link.connection.wake()

    # From here on everything runs in the courier's thread.

    def turn(self, longest_block_s: float) -> bool:
        """What is to be done now: jobs, questions, messages. False once this courier has hung up, closed or broken."""
        if not self._closing and self._error is None:
            try:
                self._work(longest_block_s)
                return True
            except BaseException as error:
                if not isinstance(error, AsyncWANError):
                    log.exception("the courier failed")
                self._error = error
        self._hang_up()
        return False

    def _due_at(self) -> float:
        link = self._link
        return self._clock() if link is None else min(link.due_at, self._downloads.due_at)

    def _work(self, longest_block_s: float) -> None:
        self._link = self._link or self._make_link(self._on_welcome, self._on_ack)
        while self._jobs:
            self._jobs.popleft()()
        self._downloads.tick()
        self._link.pump(0.0 if self._jobs else longest_block_s)
        self.traffic, self.bytes_per_s = self._link.traffic(), self._link.gauge.bytes_per_s.value or 0.0

    def _hang_up(self) -> None:
        try:
            if self._link is not None:
                self._link.close(self._closing or "error", self._goodbye_s if self._error is None else 0.0)
                self.traffic = self._link.traffic()
        finally:
            self._ended = True
            self._notify()

    def _owe(self, answers: int) -> None:  # both threads do
        with self._lock:
            self._busy += answers
            if self._busy == 0 and self._began < math.inf:
                self._exchange_s, self._began = self._clock() - self._began, math.inf
        self._notify()

    def _require_link(self) -> Link:
        assert self._link is not None
        return self._link

    def _answer(self, ticket: Ticket, reply: Reply, payload: tuple[Frame, ...]) -> None:
        ticket.reply, ticket.payload = reply, payload
        ticket.done.set()
        self._notify()

    def _on_welcome(self, welcome: Welcome) -> None:
        first = self.welcome
        if self._layout.d:  # an observer holds nothing of a run: the next one at the same address will do as well
            check_run(first, welcome, self._downloads.have)
        if first is None:
            pieces = self._layout.fragments(read_config(welcome.config).fragments) if self._layout.d else ()
            self._uploads = Uploads(codec(str(welcome.config["compression"])), self._layout, pieces)
            self._downloads.begin(codec(str(welcome.config["download_compression"])), pieces)
            follow = self._layout.d > 0 and welcome.config["submit"] == "update"
            self._downloads.standing_allowed = follow and bool(welcome.config.get("follow"))
        elif welcome.last_seq < self._acknowledged:
            self._outcomes.append(Forgotten(welcome.last_seq, self._acknowledged))
            self._acknowledged = welcome.last_seq
        self._began = math.inf  # an exchange that a lost connection has made longer says nothing of the line
        if welcome.version < self._downloads.have:
            self._downloads.have = -1
        self.welcome = welcome
        self._notify()

    def _on_ack(self, ack: Ack) -> None:
        self._downloads.stop_asked = self._downloads.stop_asked or ack.stop
        self._notify()

    def _push(self, update: Update, wait_newer: bool, compute_s: float) -> None:
        payload = self._encode(update)
        if payload is None:
            self._owe(-1)
            self._downloads.fetch(self._answered, newer=wait_newer)
            reason = Reason.NOT_FINITE.value
            self._outcomes.append(Outcome(update.push.seq, False, -1, reason, "NaN or infinity in the update"))
        else:
            sent_at, have = self._clock(), None if wait_newer else self._downloads.ride(self._answered)
            self._began = math.inf if wait_newer else sent_at  # a barrier's wait is no exchange

            def answered(reply: Reply, news: tuple[Frame, ...]) -> None:
                self._on_receipt(reply, update, payload, self._clock() - sent_at, compute_s)
                if have is not None:
                    self._downloads.came(reply, news)
                self._notify()

            self._require_link().request(riding(update.push, have), answered, (payload, update.buffer_bytes))
            if have is None:
                self._downloads.fetch(self._answered, newer=wait_newer, after_push=True)

    def _encode(self, update: Update) -> Frame | None:
        """The payload; None for an update that is not finite."""
        assert self._uploads is not None
        try:
            return self._uploads.encode(update.push, update.vector)
        except CallerError:
            if bool(torch.isfinite(update.vector).all()):
                raise
        return None

    def _on_receipt(self, reply: Reply, update: Update, payload: Frame, took_s: float, compute_s: float) -> None:
        assert self._uploads is not None
        self._uploads.note(payload, took_s, self._require_link().gauge.rtt_s.value or 0.0, compute_s)
        receipt = receipt_in(reply, update.push)
        if receipt.accepted:
            self._acknowledged = max(self._acknowledged, receipt.seq)
        lost = receipt.reason == Reason.LEASE.value
        kept = not receipt.accepted and self._uploads.refused(update.push, payload, update.vector if lost else None)
        self._downloads.stop_asked = self._downloads.stop_asked or receipt.stop
        self._outcomes.append(Outcome.of(receipt, update.push, kept))
        self._owe(-1)  # after the outcome is there: who sees us idle must find it
        self._downloads.settle(self._require_link().arriving)

    def _pull(self, question: Pull, then: Callable[[Reply, tuple[Frame, ...]], None]) -> None:
        def answered(reply: Reply, payload: tuple[Frame, ...]) -> None:
            then(reply, payload)
            self._notify()

        self._require_link().request(question, answered)

    def _answered(self) -> None:
        self._owe(-1)
