"""What is written down of an update, accepted or refused: the counts of run and worker, and an event."""

from __future__ import annotations

from lightning_async.server import leasing
from lightning_async.server.members import Member
from lightning_async.server.run import Run
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Frame


def tell(run: Run, member: Member, push: m.Push, receipt: m.Receipt, payload: tuple[Frame, ...]) -> None:
    """Write down what `receipt` says of `push`; of a refused one the `payload` is not read."""
    if receipt.accepted:
        count(run, member, push, receipt.staleness)
        note_codec(run, member, payload[0])
        return
    member.refused[receipt.reason] += 1
    leasing.note_refused(run, member, push, receipt.reason)
    refused = events.Refused(time_s=run.now, worker=member.name, reason=receipt.reason, detail=receipt.detail)
    run.emit(refused)


def count(run: Run, member: Member, push: m.Push, staleness: int) -> None:
    """An accepted update, in the counts of its worker and of the run."""
    member.accepted += 1
    member.steps += push.steps
    member.samples += push.samples
    if push.steps:  # a piece that is sent without a step says nothing of rounds
        member.last_samples, member.loss = push.samples, push.loss
        member.round_s = member.round_s.after(push.round_s)
    member.staleness.add(staleness)
    if push.hyper:
        member.hyper[push.group] = push.hyper
    run.staleness.add(staleness)
    run.steps_total += push.steps
    run.emit(
        events.Accepted(
            time_s=run.now,
            worker=member.name,
            seq=push.seq,
            staleness=staleness,
            steps=push.steps,
            samples=push.samples,
            round_s=push.round_s,
            loss=push.loss,
        )
    )


def note_codec(run: Run, member: Member, payload: Frame) -> None:
    """Where the upload codec has several rungs: which one this worker is on, and an event when it is another."""
    ladder = run.rules.upload.ladder
    if ladder is None:
        return
    before, member.codec = member.codec, ladder.specs[ladder.of(payload)]
    if before not in ("", member.codec):
        run.emit(events.CodecChanged(time_s=run.now, worker=member.name, before=before, after=member.codec))
