"""Who gets what of the published versions: Pull, answered at once or later, and the news that go with a receipt."""

from __future__ import annotations

from lightning_async.server.admission import Refusal
from lightning_async.server.members import Member
from lightning_async.server.run import Run, Waiting
from lightning_async.server.store import Answer
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope
from lightning_async.wire.messages import Reason


def pull(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> Refusal | None:
    """Pull: Params for who holds version `have`: now where there are newer ones, it does not wait or the run has ended;
    else with the next version, after `wait_s` seconds or half the run's patience at the latest."""
    pull = envelope.message
    assert isinstance(pull, m.Pull)
    if run.version != pull.have or pull.wait_s <= 0 or run.ended:
        return answer_pull(run, peer, envelope.id, pull.have, pull.packed)
    until = run.now + min(pull.wait_s, run.config.patience_s / 2)
    older = [w for w in run.waiting if w.peer == peer]  # a worker has one question standing; the newer one replaces it
    now = Waiting(peer, envelope.id, pull.have, until, pull.packed)
    run.waiting = [w for w in run.waiting if w.peer != peer] + [now]
    for w in older:
        if w.id != envelope.id:
            answer_pull(run, peer, w.id, run.version)
    return None


def answer_pull(run: Run, peer: bytes, request: int, have: int, packed: bool = False) -> Refusal | None:
    """Send Params to who holds version `have`, for its request of number `request`. Refused before version 0."""
    if run.store is None or run.version < 0:
        return Refusal(Reason.UNREADY, "no worker has sent the first parameters yet")
    params, answer = published(run, run.members.of(peer), have, packed)
    run.send(peer, request, params, answer.payload, answer.sums)
    return None


def published(run: Run, member: Member | None, have: int, packed: bool = False) -> tuple[m.Params, Answer]:
    """What a peer that holds version `have` needs for the newest one."""
    assert run.store is not None
    answer = run.store.answer(known(run, member, have), packed)
    included = member.included if member is not None else 0
    params = m.Params(
        form=answer.form,
        version=run.version,
        base=answer.base,
        included=included,
        digest=answer.digest,
        stop=bool(run.ended),
        included_of=[member.included_of.get(group, 0) if member is not None else 0 for group in _pieces(run)],
        pieces=list(answer.pieces),
    )
    return params, answer


def _pieces(run: Run) -> range:
    return range(run.config.fragments if run.config.fragments > 1 else 0)


def known(run: Run, member: Member | None, have: int) -> int:
    """`have`, or -1 for a version from before the run was restored from an older one: our namesake of it differs."""
    if member is None or run.restored_at is None or have <= run.restored_at:
        return have
    if member.told < 0:
        member.told = run.version
        return -1
    return have if have >= member.told else -1


def answer_pulls(run: Run) -> None:
    """Answer the Pulls that have waited for what is now: a newer version, their time, the end of the run."""
    waiting, run.waiting = run.waiting, []
    for w in waiting:
        if run.version != w.have or w.until <= run.now or run.ended:
            refusal = answer_pull(run, w.peer, w.id, w.have, w.packed)
            if refusal is not None:
                run.send(w.peer, w.id, m.Refused(reason=refusal.reason.value, detail=refusal.detail))
        else:
            run.waiting.append(w)
