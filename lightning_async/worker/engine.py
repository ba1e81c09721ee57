"""One worker's part in a run, free of Lightning: join, count steps, send rounds, merge what comes, leave.

The strategy and `AsyncOptimizer` both attach this engine to the user's own optimizers (worker/attach.py calls
`after_step` and `submit_gradient`). Everything here runs in the thread that trains; the courier carries. A step costs a
look at a deque; only a round that ends before the last exchange is over waits (in slices, so that signals are handled).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lightning_async.config import RunConfig, read_config
from lightning_async.errors import NetworkError, RefusedError, UnreachableError
from lightning_async.layout import shared_tensors
from lightning_async.outer import describe, hyper_of
from lightning_async.scheduling import sizing
from lightning_async.staleness import policy
from lightning_async.transport.base import Frame, Traffic
from lightning_async.wire.messages import Ack, Push, Reply, Request, Welcome
from lightning_async.worker.brief import Brief
from lightning_async.worker.courier import GOODBYE_S, Courier
from lightning_async.worker.guard import Guard
from lightning_async.worker.holdings import Holdings
from lightning_async.worker.joining import begin_run
from lightning_async.worker.link import Link
from lightning_async.worker.parcels import Outcome, Ticket, Update
from lightning_async.worker.part import Identity, Round, gradients
from lightning_async.worker.replica import Replica
from lightning_async.worker.settling import Settler
from lightning_async.worker.turns import Turns
from lightning_async.worker.world import REAL, World

MOST_TRIES = 20  # to have progress accepted before giving up
log = logging.getLogger(__name__)


class Engine:
    """A worker of the run at `address`.

    Args:
        module: whose trainable parameters and floating buffers are shared.
        optimizers: the user's; in gradient mode the server runs copies of them.
        claims: configuration that the user gave here, name -> repr; refused when the run's differs.
        give_up: asked during waits; True abandons the wait (a signal came, training is to stop).
        world: the real one, or a simulation's.
    """

    def __init__(
        self,
        address: str,
        module: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        identity: Identity | None = None,
        claims: Mapping[str, str] | None = None,
        give_up: Callable[[], bool] = lambda: False,
        world: World = REAL,
    ) -> None:
        self.clock, self._connect = world.clock, world.connect
        self.address, self.module, self.optimizers = address, module, list(optimizers)
        self.identity = identity or Identity()
        self.name, self.shared = self.identity.full_name, shared_tensors(module)
        self.replica, self._guard = Replica(self.shared), Guard(module, self.shared)
        self.holdings = Holdings()
        self._settler = Settler(self.replica, self._guard, self.holdings)
        self.config, self.workers, self.armed = RunConfig(), 1, False
        self.rigid = False  # whether every update must start from the newest version: synchronous, no overlap
        self._sizes, self.round_steps = sizing(1), 1
        self.tamper: Callable[[torch.Tensor], torch.Tensor] = lambda update: update  # see tampering.py
        self._claims, self._give_up = dict(claims or {}), give_up
        self._round, self._brief = Round(self.clock()), Brief()
        self.found: Welcome | None = None  # the run when this worker came
        self._seq, self._turns = 0, Turns(1)
        self._records: list[dict[str, Any]] = []
        self._courier = Courier(self._make_link, self.shared.layout, world)

    def __repr__(self) -> str:
        done = f"v{self.replica.version} | {self._round.length} steps | {'armed' if self.armed else 'idle'}"
        return f"<Worker {self.name} of {self.address} | {done}>"

    def start(self) -> None:
        """Join the run and take its parameters; the first worker of a run gives it its own.

        Raises RefusedError (another model, other arguments, a taken name), UnreachableError, ConfigError (in gradient
        mode, an optimizer that the server cannot run).
        """
        self._courier.start()
        self.until(lambda: self._courier.welcome is not None)
        welcome = self._welcome
        self.config = read_config(welcome.config)
        self._settler.submit, self.rigid = self.config.submit, policy(self.config.staleness).bound == 0
        self.workers, self._seq, self.found = welcome.workers, welcome.last_seq, welcome
        sizes = sizing(self.config.local_steps)
        self._sizes, self.round_steps = sizes, sizes.told(welcome.round_steps) or sizes.first
        self.replica.pieces = self.shared.layout.fragments(self.config.fragments)
        self._turns = Turns(self.config.fragments)
        if self.config.submit == "gradient":
            names = dict(zip(map(id, self.shared.parameters), self.shared.names, strict=True))
            self._records = [describe(optimizer, names) for optimizer in self.optimizers]
            self._guard.remember(self.optimizers)
        begin_run(self, lambda: self._welcome, self._courier.greet, self._records)
        self._refresh()
        _, arrivals = self._courier.collect()
        if not arrivals:
            raise UnreachableError(f"{self.address} sent no parameters; its log says why")
        self.replica.load(arrivals[-1])

    @property
    def _welcome(self) -> Welcome:
        assert self._courier.welcome is not None
        return self._courier.welcome

    def _make_link(self, welcomed: Callable[[Welcome], None], heard: Callable[[Ack], None]) -> Link:
        layout = self.shared.layout
        hello = self.identity.hello(self.name, layout, self._claims)
        dial, largest = (lambda: self.identity.dial(self._connect, self.address)), 4 * (layout.d + layout.b)
        return Link(dial, hello, welcomed, heard, self.address, largest, self.clock)

    def ask(self, message: Request, payload: tuple[Frame, ...] = ()) -> tuple[Reply, tuple[Frame, ...]]:
        """A small request and its answer. Raises RefusedError, and NetworkError when the wait was given up."""
        return self.answer_of(self._courier.ask(message, payload))

    def ask_later(self, message: Request) -> Ticket:
        """A small request whose answer is looked at later, with `answer_of`."""
        return self._courier.ask(message)

    def answer_of(self, ticket: Ticket) -> tuple[Reply, tuple[Frame, ...]]:
        """The answer to an `ask_later`; raises as `ask`."""
        self.until(ticket.done.is_set)
        return ticket.answer

    def wait(self, ready: Callable[[], bool], timeout_s: float = 1e9) -> bool:
        """Wait in slices; False when the wait was given up or is over. Raises what went wrong in the background."""
        return self._courier.wait(ready, self._give_up, timeout_s)

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`. Raises NetworkError when the wait was given up."""
        if not self.wait(ready):
            raise NetworkError(f"the wait for {self.address} was given up because training is being stopped")

    @property
    def stop_asked(self) -> bool:
        """Whether the server has said that the run is over."""
        return self._courier.stop_asked

    @property
    def traffic(self) -> Traffic:
        """Bytes at this worker's socket so far."""
        return self._courier.traffic

    @property
    def bytes_per_s(self) -> float:
        """Measured speed of its line; 0 before anything large has passed it."""
        return self._courier.bytes_per_s

    def arm(self) -> None:
        """From now on steps count. The live model becomes the newest published one."""
        self._round = Round(self.clock())
        self.align()
        self.release()
        self.armed = True

    def disarm(self) -> None:
        """Steps do not count: a tuner's trial (`armed` is set again once the parameters are as before), or the end."""
        self.armed = False

    def count_samples(self, samples: int) -> None:
        """The batch that comes holds this many samples."""
        self._round.samples += samples

    def count_loss(self, loss: torch.Tensor, times: int = 1) -> None:
        """`times` the loss that is being trained on, one number; nobody waits for it before its round is sent."""
        self._round.add_loss(loss, times)

    def after_step(self, optimizer: int) -> None:
        """The user's optimizer number `optimizer` has made a step on the live model (update mode)."""
        self._courier.check()
        self._round.stepped(optimizer, self.holdings.stepped())
        if self._round.length >= self.round_steps:
            self._send_round()
        elif self._courier.has_news:
            self._take_news()

    def submit_gradient(self, optimizer: int) -> None:
        """Send the gradients of optimizer number `optimizer` and become what the server makes of them."""
        self._courier.check()
        self._guard.check_groups(optimizer)
        present, vector = gradients(self.shared, self.optimizers[optimizer])
        if not present:
            return
        starts = [group["hyper"] for group in self._records[optimizer]["groups"]]
        self._round.stepped(optimizer, self.holdings.stepped())
        push = self._next_push(optimizer, present=present, hyper=hyper_of(self.optimizers[optimizer], starts))
        buffers = self.replica.live_buffers() if optimizer == 0 else torch.empty(0)
        self._exchange(Update(push, self.tamper(vector), buffers))
        self._finish()

    def flush(self) -> None:
        """After this returns, all progress made so far is accepted by the server, or this has raised.

        A run that has ended takes nothing more; what a codec keeps goes out with later updates. Raises RefusedError,
        and NetworkError when the wait was given up: what was not accepted by then is not sent."""
        for left in reversed(range(MOST_TRIES + self.config.fragments)):
            self.until(lambda: self._courier.idle)
            self._take_news()
            if self.config.submit == "gradient" or self.stop_asked or not (self._round.length or self.replica.owes):
                return
            if left:
                self._send_round()
        raise RefusedError(*self._settler.refusal)

    def align(self) -> None:
        """Flush, fetch the newest parameters, and make the live model exactly the published one."""
        self.flush()
        self._refresh()
        self._take_news()
        self.replica.show_published()
        self._turns.align()

    def release(self) -> None:
        """After `align`: give the live model back what was sent and is not published yet."""
        self.replica.hide_published()

    def close(self, why: str = "done", goodbye_s: float = GOODBYE_S) -> None:
        """Leave the run, for which the server gets `goodbye_s` to answer, and end the courier. Idempotent."""
        self.armed = False
        self._courier.close(why, goodbye_s)

    def _send_round(self) -> None:
        self._guard.check()
        if not self._finish() or not (self._round.length or self.replica.owes):
            return  # training is being stopped, or it stood on an update that was thrown away meanwhile
        self._exchange(self._piece() if self.replica.pieces else self._whole())
        if self.rigid:
            self._finish()

    def _whole(self) -> Update:
        own_steps, push = self._round.length, self._next_push()
        u = self.replica.update(push.seq)
        return Update(push, self.tamper(u), self.replica.live_buffers(), own_steps)

    def _piece(self) -> Update:
        """The progress of the piece whose turn it is, since its last turn."""
        if own_steps := self._round.length:
            self.replica.note_steps()
            self._turns.note(self._round.samples)
        piece = self._turns.next(self.replica.owed)
        push = self._next_push(piece)
        push = replace(push, base=self._turns.base(piece, push.base), samples=self._turns.samples(piece))
        u = self.replica.update_of(push.seq, piece)
        return Update(push, self.tamper(u), self.replica.live_buffers() if piece == 0 else torch.empty(0), own_steps)

    def _next_push(self, group: int = 0, **rest: Any) -> Push:
        self._seq += 1
        done, self._round = self._round, Round(self.clock())
        claim = (0 if self.replica.pieces else 1, self._sizes.most_claimed)
        rest["units"] = self.holdings.send(self._seq, done.units)
        rest |= {"seq": self._seq, "digest": self.shared.layout.digest, "group": group}
        return done.push(self.clock(), self.replica.version, claim, **rest)

    def _exchange(self, update: Update) -> None:
        if update.vector.is_cuda:
            torch.cuda.current_stream(update.vector.device).synchronize()  # the courier reads it from its own stream
        self._courier.exchange(update, wait_newer=self.rigid)
        self._brief.wait(lambda seconds: self.wait(lambda: self._courier.idle, seconds))

    def _finish(self) -> bool:
        """Wait until the last exchange is over, and merge what it brought; False when the wait was given up."""
        if over := self.wait(lambda: self._courier.idle):
            self._take_news()
        return over

    def _refresh(self) -> None:
        self._courier.pull()
        self.until(lambda: self._courier.idle)

    def _take_news(self) -> None:
        outcomes, arrivals = self._courier.collect()
        for outcome in outcomes:
            if isinstance(outcome, Outcome):
                self.round_steps = self._sizes.told(outcome.round_steps) or self.round_steps
            if not self._settler.settle(outcome, self._round):
                self._round = Round(self.clock())
        for arrival in arrivals:
            progressed = self._round.length > 0 or self.replica.owes  # what comes under it makes it no younger
            self.replica.merge(arrival, progressed)
            self.holdings.included(arrival.included if isinstance(arrival.included, int) else min(arrival.included))
            self._turns.came(arrival.version)
            self._round.base = self._round.base if progressed and self._round.base is not None else arrival.version
            if arrival.digest >= 0 and arrival.digest != self.replica.digest():
                log.error("version %d here differs from the published one; taking a snapshot", arrival.version)
                self._courier.forget()
