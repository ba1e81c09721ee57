"""Who comes in and who goes: Hello, Leave, silence."""

from __future__ import annotations

from dataclasses import replace

from lightning_async.config import agree, contradictions
from lightning_async.errors import PayloadError
from lightning_async.layout import Layout, difference, read_manifest
from lightning_async.server import leasing
from lightning_async.server.admission import Refusal
from lightning_async.server.exchange import depart
from lightning_async.server.members import Member
from lightning_async.server.run import Run
from lightning_async.server.sharing import count_bytes
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope
from lightning_async.wire.messages import Reason
from lightning_async.wire.session import welcomed

INIT_PATIENCE_S = 10.0  # how long the run waits for a rank 0 before it asks anybody for the first parameters
MOST_MEMBERS = 10_000


def hello(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> m.Welcome | Refusal:
    """Hello: somebody comes in, or comes back. What an earlier process of this name has leased is free again; who was
    known at this peer by another name has left. Refused: see `admit`."""
    hello = envelope.message
    assert isinstance(hello, m.Hello)
    layout = admit(run, hello)
    if isinstance(layout, Refusal):
        return layout
    known = run.members.named(hello.worker)
    again = known is not None and known.alive and known.instance == hello.instance
    if member is not None and member is not known:
        depart(run, member, f"goes on as {hello.worker!r}")
    if known is not None and known.instance != hello.instance:
        leasing.release(run, known.name, "restarted")
    entered = run.members.enter(hello, peer, run.now)
    if entered.pace.since is None:
        entered.pace = entered.pace.begun(run.now, max(0, run.version))
    entered.layout = layout if run.layout is None else None
    asked = asks_for_parameters(run, entered)
    run.emit(events.Joined(time_s=run.now, worker=entered.name, again=again))
    welcome = m.Welcome(
        run=run.name,
        run_id=run.id,
        version=run.version,
        last_seq=entered.last_seq,
        config=run.config.as_dict(),
        initialise=asked,
        workers=max(run.config.workers, len(run.members.workers())),
        beat_s=run.config.beat_s,
        round_steps=entered.round_steps,
        chunks=hello.chunks,
    )
    entered.state = welcomed(hello, welcome)
    return welcome


def admit(run: Run, hello: m.Hello) -> Layout | Refusal | None:
    """The layout in a Hello that may come in (None for an observer)."""
    if run.ended:
        return Refusal(Reason.STOPPING, f"the run has ended: {run.ended}")
    if hello.role not in ("worker", "observer") or not 0 < len(hello.worker) <= 200:
        return Refusal(Reason.ROLE, f"got role {hello.role[:40]!r}; expected worker or observer, with a name")
    known = run.members.named(hello.worker)
    if known is not None and known.alive and known.instance != hello.instance:
        return Refusal(
            Reason.NAME,
            f"a live worker is called {hello.worker!r}; choose another name, or wait {run.config.patience_s:.0f} s "
            "if it has died",
        )
    if known is None and not run.members.has_room(MOST_MEMBERS):
        return Refusal(Reason.LIMIT, f"this run has seen {MOST_MEMBERS} workers and takes no new names")
    differing = contradictions(run.config, claims_left(run, hello))
    if differing:
        return Refusal(Reason.CONFIG, "; ".join(differing) + ". Leave the arguments out, or give the run's")
    return None if hello.role == "observer" else read_layout(run, hello)


def claims_left(run: Run, hello: m.Hello) -> dict[str, str]:
    """The claims without those that were true before the owner changed it: a worker cannot know of that."""
    before = {name: row["given"] for name, row in run.changed.items()}
    return {name: claim for name, claim in hello.claims.items() if name not in before or not agree(before[name], claim)}


def read_layout(run: Run, hello: m.Hello) -> Layout | Refusal:
    """The layout that a Hello describes. Refused where it cannot be read, its digest is another's or the run's differs;
    the text says in which tensor."""
    try:
        layout = read_manifest(hello.tensors)
    except PayloadError as error:
        return Refusal(Reason.LAYOUT, str(error))
    if run.layout is not None and (text := difference(run.layout, layout)):
        return Refusal(Reason.LAYOUT, f"worker {hello.worker!r}: {text}. Start both from the same model code")
    return layout if hello.digest == layout.digest else Refusal(Reason.LAYOUT, "digest and tensors do not agree")


def asks_for_parameters(run: Run, member: Member) -> bool:
    """Whether `member` is to send the first parameters: a rank 0 at once, anybody once none has come in time."""
    if run.version >= 0 or member.role != "worker":
        return False
    chosen = run.members.named(run.initialiser) if run.initialiser else None
    if chosen is not None and chosen is not member and chosen.alive:
        return False
    if member.rank != 0 and run.now - run.started_at < INIT_PATIENCE_S:
        return False
    run.initialiser = member.name
    return True


def leave(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> m.Ack:
    """Leave: a worker says goodbye, with the bytes that it has counted; what it pushed stays. `waiting` in the Ack: how
    many of its local steps are in no version yet."""
    leave = envelope.message
    assert isinstance(leave, m.Leave)
    if member is not None:
        sent, received = max(member.sent_bytes, leave.sent_bytes), max(member.received_bytes, leave.received_bytes)
        count_bytes(run, member, sent, received, last=True)
        depart(run, member, leave.why[:200] or "left", said=True)
    return replace(run.ack(), waiting=steps_waiting(run, member) if member is not None else 0)


def steps_waiting(run: Run, member: Member) -> int:
    """Local steps of `member` that were accepted and are in no version yet."""
    buffers = run.stepper.waiting if run.stepper is not None else []
    return sum(slot.steps for buffer in buffers for slot in buffer if slot.worker == member.name)
