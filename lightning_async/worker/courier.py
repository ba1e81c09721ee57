"""The background thread that carries updates and parameters while training goes on.

It owns the link and the codecs' states. The main thread hands it at most one update at a time (`exchange`), asks small
questions (`ask`), and collects what has come (`collect`). Whatever goes wrong in here is raised to the main thread by
its next `check`, never swallowed.

Lightning changes process-global torch state during a step (default dtype, no_grad); nothing in this file depends on it:
vectors come detached, and every tensor that is made here has its dtype written out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_async.codecs import Codec, bind, codec
from lightning_async.errors import AsyncWANError, CallerError, NetworkError, ProtocolError, RefusedError
from lightning_async.layout import Layout
from lightning_async.transport.base import Frame, Traffic
from lightning_async.wire.messages import Ack, Params, Pull, Push, Reason, Receipt, Refused, Reply, Request, Welcome
from lightning_async.worker.link import Link
from lightning_async.worker.replica import Arrival
from lightning_async.worker.uploading import Uploads

SLICE_S = 0.2  # the longest the main thread blocks without looking up
PUMP_S = 0.1
GOODBYE_S = 1.0
HOLD_S = 10.0  # how long the server may hold a question for a newer version
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """What `exchange` sends: the message, the flat vector [n] and the buffers [b]."""

    push: Push
    vector: Tensor
    buffers: Tensor


@dataclass(frozen=True)
class Outcome:
    """What became of update `seq`. `kept`: the codec took a refused one back into its residual."""

    seq: int
    accepted: bool
    version: int
    reason: str = ""
    detail: str = ""
    kept: bool = False


@dataclass(frozen=True)
class Forgotten:
    """A server that was restored from a snapshot has lost accepted updates: those after `after`, up to `last`."""

    after: int
    last: int


@dataclass
class Ticket:
    """An answer to come."""

    reply: Reply | None = None
    payload: tuple[Frame, ...] = ()
    done: threading.Event = field(default_factory=threading.Event)


class Courier:
    """One worker's background thread.

    Args:
        link: makes the link in the courier's thread, given what to call on a Welcome and on a Beat's answer.
        layout: of what is shared; an observer's has no tensors.
    """

    def __init__(
        self, link: Callable[[Callable[[Welcome], None], Callable[[Ack], None]], Link], layout: Layout
    ) -> None:
        self._make_link, self._layout = link, layout
        self.welcome: Welcome | None = None
        self.stop_asked = False
        self._have = -1
        self._acknowledged = 0
        self._jobs: deque[Callable[[], None]] = deque()
        self._arrivals: deque[Arrival] = deque()
        self._outcomes: deque[Outcome | Forgotten] = deque()
        self._busy = 0  # requests of the exchange that are not answered
        self._pulling = False
        self._error: BaseException | None = None
        self._closing = ""
        self._goodbye_s = GOODBYE_S
        self._ended = threading.Event()
        self._changed = threading.Condition()
        self._uploads: Uploads | None = None
        self._download: Codec | None = None
        self._waited_s = self._waited_before_s = 0.0  # by the main thread; until the last exchange
        self._link: Link | None = None
        self._traffic = Traffic()
        self._thread = threading.Thread(target=self._run, name="lightning-async-courier", daemon=True)

    # What follows, down to `close`, is called by the main thread.

    def start(self) -> None:
        """Begin to dial."""
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether the last update has its receipt and the parameters after it are here."""
        return self._busy == 0

    @property
    def traffic(self) -> Traffic:
        """Bytes at the socket so far."""
        return self._traffic

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._error is not None:
            raise self._error

    def wait(self, ready: Callable[[], bool], give_up: Callable[[], bool], timeout_s: float = 1e9) -> bool:
        """Wait until `ready()`; False when `give_up()` or the time is over first.

        Looks up every SLICE_S, so that signal handlers run. Raises what went wrong in the background, and NetworkError
        after `close`.
        """
        began = time.monotonic()
        try:
            return self._wait(ready, give_up, began + timeout_s)
        finally:
            self._waited_s += time.monotonic() - began

    def _wait(self, ready: Callable[[], bool], give_up: Callable[[], bool], deadline: float) -> bool:
        while True:
            self.check()
            if ready():
                return True
            if self._ended.is_set():
                raise NetworkError("this worker has left the run, so nobody answers any more")
            if give_up() or time.monotonic() >= deadline:
                return False
            with self._changed:
                if not ready():
                    self._changed.wait(SLICE_S)

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
        self._busy += 2
        compute_s = max(0.0, update.push.round_s - (self._waited_s - self._waited_before_s))
        self._waited_before_s = self._waited_s
        self._post(lambda: self._push(update, wait_newer, compute_s))

    @property
    def has_news(self) -> bool:
        """Whether `collect` would return anything."""
        return bool(self._outcomes or self._arrivals)

    def pull(self) -> None:
        """Fetch the newest parameters."""
        self._busy += 1
        self._post(lambda: self._pull(0.0))

    def forget(self) -> None:
        """Fetch a whole snapshot: what this worker holds is not what the server published."""
        self._busy += 1
        self._post(self._pull_anew)

    def collect(self) -> tuple[list[Outcome | Forgotten], list[Arrival]]:
        """What has come since the last call, in order."""
        outcomes = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
        arrivals = [self._arrivals.popleft() for _ in range(len(self._arrivals))]
        return outcomes, arrivals

    def close(self, why: str, goodbye_s: float = GOODBYE_S) -> None:
        """Say goodbye, which the server may take `goodbye_s` to answer, and end the thread. Idempotent.

        Raises NetworkError if the thread does not end.
        """
        if not self._closing and self._thread.ident is not None:
            self._goodbye_s, self._closing = goodbye_s, why or "closed"
            self._post(lambda: None)
        if self._thread.ident is not None:
            self._thread.join(goodbye_s + 8.0)
            if self._thread.is_alive():
                raise NetworkError("the courier's thread did not end; please report this with a stack dump")

    def _post(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        link = self._link
        if link is not None:
            link.connection.wake()

    # From here on everything runs in the courier's thread.

    def _run(self) -> None:
        try:
            self._link = self._make_link(self._on_welcome, self._on_ack)
            while not self._closing:
                while self._jobs:
                    self._jobs.popleft()()
                self._link.pump(0.0 if self._jobs else PUMP_S)
                self._traffic = self._link.traffic()
        except BaseException as error:
            if not isinstance(error, AsyncWANError):
                log.exception("the courier failed")
            self._error = error
        finally:
            if self._link is not None:
                self._link.close(self._closing or "error", self._goodbye_s if self._error is None else 0.0)
                self._traffic = self._link.traffic()
            self._ended.set()
            self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _require_link(self) -> Link:
        assert self._link is not None
        return self._link

    def _answer(self, ticket: Ticket, reply: Reply, payload: tuple[Frame, ...]) -> None:
        ticket.reply, ticket.payload = reply, payload
        ticket.done.set()
        self._notify()

    def _on_welcome(self, welcome: Welcome) -> None:
        first = self.welcome
        if first is not None and (welcome.run != first.run or welcome.version < 0 <= max(first.version, self._have)):
            raise RefusedError(
                "unknown_run",
                f"the server was started anew without the state of run {first.run!r}; start the workers again, or "
                "start the server with the state_dir of that run",
            )
        if first is None:
            self._uploads = Uploads(codec(str(welcome.config["compression"])), self._layout)
            self._download = bind(codec(str(welcome.config["download_compression"])), self._layout.shapes())
        else:
            if welcome.last_seq < self._acknowledged:
                self._outcomes.append(Forgotten(welcome.last_seq, self._acknowledged))
                self._acknowledged = welcome.last_seq
        if welcome.version < self._have:
            self._have = -1
        self.welcome = welcome
        self._notify()

    def _on_ack(self, ack: Ack) -> None:
        self.stop_asked = self.stop_asked or ack.stop
        if ack.version > self._have >= 0 and not self._busy and not self._pulling and not self._arrivals:
            self._pull(0.0, counts=False)
        self._notify()

    def _push(self, update: Update, wait_newer: bool, compute_s: float) -> None:
        payload = self._encode(update)
        if payload is None:
            self._busy -= 1
            reason = Reason.NOT_FINITE.value
            self._outcomes.append(Outcome(update.push.seq, False, -1, reason, "NaN or infinity in the update"))
        else:
            sent_at = time.monotonic()
            self._require_link().request(
                update.push,
                lambda reply, _: self._on_receipt(reply, update, payload, time.monotonic() - sent_at, compute_s),
                (payload, _bytes(update.buffers)),
            )
        self._pull(HOLD_S if wait_newer else 0.0)

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
        self._busy -= 1
        self._uploads.note(payload, took_s, self._require_link().rtt_s.value or 0.0, compute_s)
        if isinstance(reply, Refused):
            receipt = Receipt(seq=update.push.seq, accepted=False, version=-1, reason=reply.reason, detail=reply.detail)
        else:
            assert isinstance(reply, Receipt)
            receipt = reply
        if receipt.accepted:
            self._acknowledged = max(self._acknowledged, receipt.seq)
        kept = not receipt.accepted and self._uploads.take_back(update.push, payload)
        self.stop_asked = self.stop_asked or receipt.stop
        self._outcomes.append(
            Outcome(receipt.seq, receipt.accepted, receipt.version, receipt.reason, receipt.detail, kept)
        )
        self._notify()

    def _pull(self, wait_s: float, counts: bool = True) -> None:
        self._pulling = True
        message = Pull(have=self._have, wait_s=wait_s)
        self._require_link().request(message, lambda reply, payload: self._on_params(reply, payload, counts, wait_s))

    def _pull_anew(self) -> None:
        self._have = -1
        self._pull(0.0)

    def _on_params(self, reply: Reply, payload: tuple[Frame, ...], counts: bool, wait_s: float) -> None:
        if isinstance(reply, Params):
            self.stop_asked = self.stop_asked or reply.stop
            if reply.form == "deltas" and reply.base != self._have < reply.version:
                self._pull(0.0, counts)  # an answer to an older question; what it is based on is not what we hold
                return
            if reply.form == "unchanged" and wait_s and not self.stop_asked:
                self._pull(wait_s, counts)  # held for long enough, and still no quorum: keep asking
                return
            if reply.form != "unchanged" and reply.version > self._have:
                self._arrivals.append(self._read(reply, payload))
                self._have = reply.version
        else:
            assert isinstance(reply, Refused)
            log.info("no parameters: %s", reply.detail)
        self._pulling = False
        self._busy -= counts
        self._notify()

    def _read(self, params: Params, payload: tuple[Frame, ...]) -> Arrival:
        if params.form != "deltas":
            return read_snapshot(params, payload, self._layout.d, self._layout.b)
        assert self._download is not None
        vectors, buffers = _parted(params, payload, self._layout.b)
        deltas = tuple(self._download.decode(frame, self._layout.d) for frame in vectors)
        return Arrival(params.version, params.included, None, deltas, buffers, params.digest)


def read_snapshot(params: Params, payload: tuple[Frame, ...], d: int, b: int) -> Arrival:
    """The parameters [d] and buffers [b] in a snapshot. Raises ProtocolError, PayloadError."""
    vectors, buffers = _parted(params, payload, b)
    if params.form != "snapshot":
        raise ProtocolError(f"Params of form {params.form[:20]!r}, expected a snapshot")
    whole = codec("none").decode(vectors[0], d)
    return Arrival(params.version, params.included, whole, (), buffers, params.digest)


def _parted(params: Params, payload: tuple[Frame, ...], b: int) -> tuple[list[Frame], Tensor]:
    *vectors, last = payload or (b"",)
    if len(last) != 4 * b or not vectors:
        raise ProtocolError(f"Params of form {params.form[:20]!r} with {len(payload)} frames")
    return vectors, _floats(last)


def _bytes(vector: Tensor) -> Frame:
    return vector.detach().numpy().data.cast("B") if vector.numel() else b""


def _floats(frame: Frame) -> Tensor:
    return (
        torch.frombuffer(bytearray(frame), dtype=torch.float32) if len(frame) else torch.empty(0, dtype=torch.float32)
    )
