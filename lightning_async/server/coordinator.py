"""The server's brain: (event, now) -> actions. It has no socket, thread, clock, file or random source of its own.

Who decides what: joining (who is in), admission (what an update must be), exchange (what follows from one), stepping
(how a version is made), publishing and store (who gets what of it), leasing (who trains on which samples), sharing
(small things). They share one `Run`. The network service, the tests, a simulator and a replay all drive this same
object, and the same events at the same times give the same run, bit for bit.

A request is answered by `Send` actions, its own answer among them; a Pull may be answered later, when a version
comes. What a member may ask in which state stands in wire/session.py. A request that is refused changes nothing but
counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_async.config import RunConfig
from lightning_async.server import (
    changing,
    exchange,
    joining,
    leasing,
    live,
    memory,
    publishing,
    report,
    sharing,
    standing,
)
from lightning_async.server.actions import Action, Event, Gone, Received, Stop, Tick
from lightning_async.server.admission import Refusal
from lightning_async.server.advice import advice
from lightning_async.server.members import Member
from lightning_async.server.private import NOTHING, Private
from lightning_async.server.rules import canonical, check_private, rules_of
from lightning_async.server.run import Run
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope
from lightning_async.wire.messages import Reason
from lightning_async.wire.session import State, advance

# (run, peer, the member at that peer or None, its request) -> the answer; None where that was sent, or comes later
Answer = Callable[[Run, bytes, Member | None, Envelope], m.Reply | Refusal | None]
ANSWERS: dict[type, Answer] = {
    m.Hello: joining.hello,
    m.Leave: joining.leave,
    m.Init: exchange.init,
    m.Push: exchange.push,
    m.Pull: publishing.pull,
    m.Beat: sharing.beat,
    m.Lease: leasing.lease,
    m.Share: sharing.share,
    m.Fetch: sharing.fetch,
    m.Load: sharing.load,
    m.Status: sharing.status,
    m.Pardon: sharing.pardon,
    m.Enrol: sharing.enrol,
    m.Order: sharing.order,
    m.Probe: sharing.probe,
}


class Coordinator:
    """One run. Raises ConfigError when `config` names rules that cannot work together.

    `run_id` tells it from every other run, also from one of the same name: random, made by who starts it first.
    """

    def __init__(self, config: RunConfig, name: str, private: Private = NOTHING, run_id: str = "") -> None:
        config = canonical(config)
        self.run = Run(config, name, rules_of(config, private), id=run_id)
        check_private(self.run.rules)
        self._begun = False

    @classmethod
    def restored(
        cls, config: RunConfig, record: Mapping[str, Any], tensors: Mapping[str, Tensor], private: Private = NOTHING
    ) -> Coordinator:
        """The run that `memory.dump` described, going on. Raises ConfigError when `config` is another run's."""
        coordinator = cls(config, str(record["run"]), private, str(record["run_id"]))
        memory.restore(coordinator.run, record, tensors)
        return coordinator

    @classmethod
    def continued(
        cls, config: RunConfig, record: Mapping[str, Any], tensors: Mapping[str, Tensor], private: Private = NOTHING
    ) -> Coordinator:
        """As `restored`, with everybody still there: for the events that came after the dump."""
        coordinator = cls.restored(config, record, tensors, private)
        live.restore(coordinator.run, record["live"])
        coordinator._begun = True
        return coordinator

    def __repr__(self) -> str:
        return report.line(self.run)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Everything that follows from `event` at time `now` (seconds; a clock that goes back counts as standing)."""
        self._begin(now)
        match event:
            case Received():
                self._receive(event.peer, event.envelope, event.refused)
            case Gone():
                self.run.waiting = [w for w in self.run.waiting if w.peer != event.peer]
            case Tick():
                self._tick(self.silent(now) if event.silent is None else event.silent)
        return self.run.actions

    def begin(self, now: float) -> list[Action]:
        """The run's clock starts; the first event does this too, so that only a recorded run needs it."""
        self._begin(now)
        return self.run.actions

    def silent(self, now: float) -> tuple[str, ...]:
        """The members that have been silent for longer than the run's patience."""
        now, patience = max(self.run.now, now), self.run.config.patience_s
        return tuple(member.name for member in self.run.members if member.alive and now - member.seen_at > patience)

    def foregone(self, peer: bytes, message: m.Message) -> bool:
        """Whether the answer to this request of `peer` is known without its payload. Changes nothing."""
        member = self.run.members.of(peer)
        if member is None or not member.alive:
            return False  # who comes back goes on
        return isinstance(advance(member.state, message), Reason) or exchange.foregone(self.run, member, message)

    def stop(self, why: str, now: float) -> list[Action]:
        """End the run by hand; workers learn it from their next answer."""
        self._begin(now)
        if not self.run.ended:
            exchange.end(self.run, why)
        self.run.actions.append(Stop(why))
        return self.run.actions

    def pardon(self, name: str, now: float) -> list[Action]:
        """End the quarantine of the worker called `name`. Raises ConfigError when it is in none."""
        self._begin(now)
        standing.pardon(self.run, name)
        return self.run.actions

    def change(self, values: Mapping[str, Any], now: float) -> list[Action]:
        """Go on with other values of the configuration. Raises ConfigError for what cannot be changed, or not to that;
        nothing has changed then."""
        self._begin(now)
        changing.change(self.run, values)
        return self.run.actions

    def expel(self, names: Sequence[str], why: str, now: float) -> list[Action]:
        """Count these members out at once; what they have pushed stays. Who is not there stays so."""
        self._begin(now)
        for name in names:
            member = self.run.members.named(name)
            if member is not None and member.alive:
                exchange.depart(self.run, member, why)
        return self.run.actions

    def _begin(self, now: float) -> None:
        first, self._begun = not self._begun, True
        self.run.now = max(self.run.now, now)
        self.run.actions = []
        if first:
            for text in advice(self.run.rules):
                self.run.emit(events.Advised(time_s=now, text=text))
            self.run.started_at = now
            for member in self.run.members:  # of an earlier life: nobody knows for how long it was silent
                member.seen_at = now
            for ledger in self.run.streams.values():
                ledger.touch(now)
            exchange.limit(self.run)

    def _receive(self, peer: bytes, envelope: Envelope, refused: m.Receipt | None) -> None:
        member = self.run.members.of(peer)
        state = member.state if member is not None else State.NEW
        if member is not None:
            member.seen_at = self.run.now
        after = advance(state, envelope.message)
        if isinstance(after, Reason):
            text = f"{type(envelope.message).__name__} is not allowed to a peer that is {state.value!r}"
            self._refuse(peer, envelope, Refusal(after, text))
            return
        if refused is not None and isinstance(envelope.message, m.Push):
            self.run.send(peer, envelope.id, exchange.push_again(self.run, member, envelope.message, refused))
            return
        answer = ANSWERS[type(envelope.message)](self.run, peer, member, envelope)
        if isinstance(answer, Refusal):
            self._refuse(peer, envelope, answer)
        elif answer is not None:
            self.run.send(peer, envelope.id, answer)

    def _refuse(self, peer: bytes, envelope: Envelope, refusal: Refusal) -> None:
        member = self.run.members.of(peer)
        if member is None:
            self.run.refused_strangers += 1
        else:
            member.refused[refusal.reason.value] += 1
        name, reason = member.name if member is not None else "?", refusal.reason.value
        self.run.emit(events.Refused(time_s=self.run.now, worker=name, reason=reason, detail=refusal.detail))
        self.run.send(peer, envelope.id, m.Refused(reason=reason, detail=refusal.detail))

    def _tick(self, silent: Iterable[str]) -> None:
        for name in silent:
            member = self.run.members.named(name)
            if member is not None and member.alive:
                exchange.depart(self.run, member, f"silent for {self.run.config.patience_s:.0f} s")
        exchange.step_when_ready(self.run)
        publishing.answer_pulls(self.run)
