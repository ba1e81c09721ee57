"""From updates to versions: Init, Push, the step that follows when a quorum is there, and the end of the run."""

from __future__ import annotations

from dataclasses import replace

from lightning_async.codecs import bind
from lightning_async.errors import ConfigError, LayoutError, PayloadError
from lightning_async.layout import difference
from lightning_async.server import admission, counting, leasing, pacing, sizing
from lightning_async.server.actions import Limit
from lightning_async.server.admission import Refusal
from lightning_async.server.buffer import Slot
from lightning_async.server.members import Member
from lightning_async.server.publishing import answer_pulls, published
from lightning_async.server.run import Run
from lightning_async.server.standing import check_standing, judge, note_shortage
from lightning_async.server.stepping import Made, Stepper
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.frames import MAX_HEADER_BYTES, Envelope, Frame
from lightning_async.wire.messages import Reason
from lightning_async.wire.session import STARTED


def init(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> m.Ack | Refusal:
    """Init: the first parameters that fit are version 0, and whoever waits for them begins or learns that its model
    differs. Later ones are only acknowledged. Refused: another layout than its worker's Hello, or a payload or
    optimizers that this run cannot go on from; nothing has changed then."""
    init = envelope.message
    assert isinstance(init, m.Init)
    assert member is not None
    if run.version >= 0:
        return run.ack()
    if member.layout is None or init.digest != member.layout.digest:
        return Refusal(Reason.LAYOUT, "Init is for another layout than this worker's Hello")
    try:
        run.stepper = Stepper(run.config, run.rules, member.layout, init.optimizers, envelope.payload)
    except (PayloadError, ConfigError, LayoutError) as error:
        return Refusal(Reason.PAYLOAD, str(error))
    run.layout = member.layout
    run.emit(events.Initialised(time_s=run.now, worker=member.name, parameters=run.layout.d, buffers=run.layout.b))
    limit(run)
    start_members(run)
    pacing.note_start(run)
    return run.ack()


def limit(run: Run) -> None:
    """Once the layout is known, nothing larger than what belongs to it needs to be read."""
    if run.layout is not None:
        upload = bind(run.rules.upload, run.layout.shapes())
        state = 0 if run.stepper is None else sum(tensor.nbytes for tensor in run.stepper.state().values())
        largest = max(upload.max_bytes(run.layout.d), 8 * run.layout.d, 4 * run.layout.b, state)
        run.actions.append(Limit(MAX_HEADER_BYTES + largest))


def start_members(run: Run) -> None:
    """Everybody who waits may begin, or learns that its model differs."""
    assert run.layout is not None
    for other in list(run.members.workers()):
        text = difference(run.layout, other.layout) if other.layout is not None else ""
        other.layout = None
        if text:
            waiting = [w for w in run.waiting if w.peer == other.peer]
            for w in waiting:
                refused = m.Refused(reason=Reason.LAYOUT.value, detail=f"worker {other.name!r}: {text}")
                run.send(w.peer, w.id, refused)
            depart(run, other, "another model")
        else:
            other.state = STARTED[other.state]
    answer_pulls(run)


def push(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> m.Receipt | None:
    """Push: an update; answered by its receipt, and where it says what its worker `have`s by newer parameters as well.
    A number that came before gets its receipt again, and nothing follows from it."""
    push = envelope.message
    assert isinstance(push, m.Push)
    assert member is not None
    receipt = member.receipts.get(push.seq)
    if receipt is None:
        receipt = settle(run, member, push, read_update(run, member, push, envelope.payload), envelope.payload)
    receipt = replace(receipt, stop=bool(run.ended))
    if push.have is None:
        return receipt
    params, answer = published(run, member, push.have)
    run.send(peer, envelope.id, replace(receipt, news=vars(params)), answer.payload, answer.sums)
    return None


def push_again(run: Run, member: Member | None, push: m.Push, receipt: m.Receipt) -> m.Receipt:
    """What `push` did when the answer was `receipt`, a refusal; of a journal, which has the update no more."""
    assert member is not None
    return settle(run, member, push, Refusal(Reason(receipt.reason), receipt.detail), ())


def settle(run: Run, member: Member, push: m.Push, found: Slot | Refusal, payload: tuple[Frame, ...]) -> m.Receipt:
    """Everything that follows from a new push, once it is known what it is."""
    round_steps = sizing.next_round(run, member, push)
    receipt = replace(decide(run, member, push, found), round_steps=round_steps)
    member.last_seq = max(member.last_seq, push.seq)
    member.keep(receipt)  # before anything that may break: who is told of a failure asks again, and gets this one
    counting.tell(run, member, push, receipt, payload)
    if push.steps:
        pacing.note_arrival(run, member, receipt.accepted)
    step_when_ready(run)
    return receipt


def decide(run: Run, member: Member, push: m.Push, found: Slot | Refusal) -> m.Receipt:
    """The receipt of a new push. One that was not refused waits in its worker's slot from now on, and claims the leased
    samples in it."""
    assert run.stepper is not None
    receipt = m.Receipt(seq=push.seq, accepted=True, version=run.version, staleness=run.stepper.age(push.base))
    if isinstance(found, Refusal):
        run.stepper.note_refused(push.group, member.name, found.reason)
        return replace(receipt, accepted=False, reason=found.reason.value, detail=found.detail)
    leasing.claim(run, found)
    run.stepper.add(push.group, found)
    return receipt


def place(run: Run, member: Member, push: m.Push) -> Refusal | None:
    """Why a new push has no place in the run as it is now, whatever its payload is."""
    assert run.stepper is not None
    assert run.layout is not None
    age, bound = run.stepper.age(push.base), pacing.bound(run, member)
    return admission.check_place(push, member, run.version, age, bound, run.layout.digest)


def foregone(run: Run, member: Member, message: m.Message) -> bool:
    """Whether the answer to `message` is known without its payload: an update that comes too late, or was here before,
    and parameters of a run that has some. Changes nothing."""
    if isinstance(message, m.Init):
        return run.version >= 0
    if not isinstance(message, m.Push) or run.stepper is None:
        return False
    return bool(run.ended) or message.seq in member.receipts or place(run, member, message) is not None


def read_update(run: Run, member: Member, push: m.Push, payload: tuple[Frame, ...]) -> Slot | Refusal:
    """What a new push brings, decoded and ready to wait. Refused for the first of these that is wrong: the run has
    ended, its worker's standing, its place (`place`), what it claims, its hyperparameters, its leases, the payload, its
    norm. Nothing has changed but, for one that is not refused, what norms are usual."""
    assert run.stepper is not None
    assert run.layout is not None
    if run.ended:
        return Refusal(Reason.STOPPING, f"the run has ended: {run.ended}")
    refusal = check_standing(member) or place(run, member, push)
    refusal = refusal or admission.check_claims(
        push, run.config, run.rules.sizing.most_claimed, run.stepper.groups, len(run.layout.parameters)
    )
    refusal = refusal or run.stepper.check_hyper(push.group, push.hyper) or leasing.check(run, member, push)
    if refusal is not None:
        return refusal
    present = run.stepper.present(push)
    decoded = admission.decode_update(present, payload, run.rules.upload, run.layout, run.stepper.store.buffers)
    if isinstance(decoded, Refusal):
        return decoded
    norm = run.stepper.check_norm(push.group, member.name, decoded[0])
    if isinstance(norm, Refusal):
        return norm
    samples = admission.capped_samples(push.samples, run.members.workers())
    units = leasing.units_of(run, push)
    return Slot(member.name, *decoded, present, push.base, push.seq, samples, push.steps, units)


def step_when_ready(run: Run, last: bool = False) -> None:
    """Make every version whose quorum is there; end a run that has its steps or passes. `last`: as `Stepper.step`."""
    if run.stepper is None:
        return
    note_shortage(run)
    live = pacing.awaited(run)
    for group in range(run.stepper.groups):
        while (made := run.stepper.step(group, live, run.now, last)) is not None:
            stepped(run, made)
    note_shortage(run)
    if run.config.total_steps is not None and run.steps_total >= run.config.total_steps and not run.ended:
        end(run, f"{run.steps_total} of {run.config.total_steps} steps are in")
    if not run.ended and (why := leasing.through(run)):
        end(run, why)


def stepped(run: Run, made: Made) -> None:
    """Everything that follows from `made`, a version or updates that were dropped: who is in it, which samples are
    applied, what is told, who is judged, and the Pulls that waited for it."""
    slots = made.slots
    for slot in slots:
        member = run.members.named(slot.worker)
        if member is not None:
            member.included = max(member.included, slot.seq)
            member.included_of[made.group] = max(member.included_of.get(made.group, 0), slot.seq)
        leasing.settle(run, slot, made.dropped)
    if made.dropped:
        for slot in slots:
            run.emit(events.Dropped(time_s=run.now, worker=slot.worker, seq=slot.seq, why=made.dropped))
    else:
        pacing.note_version(run)
        run.emit(
            events.Stepped(
                time_s=run.now,
                version=run.version,
                workers=tuple(slot.worker for slot in slots),
                staleness=made.ages,
                steps_total=run.steps_total,
            )
        )
    judge(run, made)
    note_shortage(run)
    answer_pulls(run)


def end(run: Run, why: str) -> None:
    """The run ends, because of `why`. What waits makes a last version where the rule allows it, else it is told as
    unused; from their next answer on workers know."""
    run.ended = why
    step_when_ready(run, last=True)
    left = [slot for buffer in (run.stepper.waiting if run.stepper is not None else ()) for slot in buffer]
    if left:
        steps = sum(slot.steps for slot in left)
        run.emit(events.Unused(time_s=run.now, workers=tuple(slot.worker for slot in left), steps=steps))
    run.emit(events.Ended(time_s=run.now, why=why))
    answer_pulls(run)


def depart(run: Run, member: Member, why: str, said: bool = False) -> None:
    """A member goes; what it pushed stays, and a quorum of all may be complete without it.

    `said`: it took its leave. When the last worker does, nobody is left to complete a quorum; one that only fell silent
    may come back.
    """
    leasing.release(run, member.name, "left" if said else "lost")
    run.members.leave(member)
    member.pace = member.pace.away()
    run.waiting = [w for w in run.waiting if w.peer != member.peer]
    run.emit(events.Left(time_s=run.now, worker=member.name, why=why))
    step_when_ready(run, last=said and not run.members.workers())
