"""Where workers stand: are there enough of them, what became of their reputations, and who is in quarantine.

A quarantined worker stays in the run and gets parameters; its updates are refused, and no quorum waits for it. It comes
back by itself after its term (reputation.py), with a clean sheet, or when the owner pardons it.
"""

from __future__ import annotations

from dataclasses import replace

from lightning_async.errors import ConfigError
from lightning_async.server.admission import Refusal
from lightning_async.server.members import Member
from lightning_async.server.reputation import Reputation, term
from lightning_async.server.run import Run
from lightning_async.server.stepping import Made
from lightning_async.telemetry import events
from lightning_async.wire.messages import Reason


def shortage(run: Run) -> tuple[int, int, str] | None:
    """(have, need, why) while the voters are too few for a step; None when they are enough, or no run has begun."""
    if run.stepper is None or run.ended:
        return None
    voters = run.members.voters()
    have, need = len(voters), run.stepper.need(voters)
    if run.stepper.trouble:
        return have, need, run.stepper.trouble
    rule = run.rules
    if have >= need or not (have or rule.robust):  # an empty run of the mean waits for nobody in particular
        return None
    why = f"{rule.spec} needs {rule.smallest}" if need == rule.smallest > 1 else f"the quorum is {need}"
    barred = sum(1 for member in run.members.workers() if member.quarantined)
    return have, need, why + (f"; {barred} in quarantine" if barred else "")


def note_shortage(run: Run) -> None:
    """Say it once when a shortage begins, changes or ends."""
    short = shortage(run)
    if short == run.short:
        return
    run.short = short
    if short is not None:
        have, need, why = short
        run.emit(events.Waiting(time_s=run.now, have=have, need=need, why=why))
    elif run.stepper is not None and not run.ended:
        voters = run.members.voters()
        run.emit(events.Enough(time_s=run.now, have=len(voters), need=run.stepper.need(voters)))


def judge(run: Run, made: Made) -> None:
    """Take a step's review into the reputations; exclude who fell below the threshold, free whose term is over."""
    _remember(run, made)
    for member in run.members:
        if member.barred_until is not None and run.version >= member.barred_until:
            _release(run, member, "its term is over")
    below = run.config.quarantine_below
    if below is not None:
        fallen = [member for member in run.members.voters() if member.reputation.falls_below(below)]
        for member in sorted(fallen, key=lambda member: member.reputation.score.value or 0.0):
            _exclude(run, member)


def check_standing(member: Member) -> Refusal | None:
    """Whether updates of this worker are taken."""
    if member.barred_until is None:
        return None
    text = f"in quarantine until version {member.barred_until}, for its updates lay far from those of the others"
    return Refusal(
        Reason.QUARANTINED, f"{text}. Look at this worker's data, loss and precision, or ask the run's owner"
    )


def pardon(run: Run, name: str) -> None:
    """End a worker's quarantine; it begins again with a clean sheet. Raises ConfigError when it is in none."""
    member = run.members.named(name)
    if member is None or member.barred_until is None:
        barred = sorted(other.name for other in run.members if other.quarantined)
        raise ConfigError(f"got {name!r} to pardon; in quarantine are: {', '.join(barred) or 'nobody'}")
    member.barred = 0
    _release(run, member, "pardoned")


def release_all(run: Run, why: str) -> None:
    """End every quarantine."""
    for member in run.members:
        if member.barred_until is not None:
            _release(run, member, why)


def _remember(run: Run, made: Made) -> None:
    sights = made.review.sights
    names = tuple(slot.worker for slot in made.slots)
    for name, sight in zip(names, sights, strict=False):
        member = run.members.named(name)
        if member is not None:
            member.reputation = member.reputation.after(sight)
    if sights:
        run.emit(
            events.Judged(
                time_s=run.now,
                version=run.version,
                workers=names,
                influence=tuple(sight.influence for sight in sights),
                distance_z=tuple(sight.distance_z for sight in sights),
                cosine=tuple(sight.cosine for sight in sights),
                score=tuple(_score(run.members.named(name)) for name in names),
            )
        )
    for worker, like, cosine in _copied(made):
        member = run.members.named(worker)
        if member is not None:
            member.reputation = replace(member.reputation, copies=member.reputation.copies + 1)
        run.emit(events.Copied(time_s=run.now, version=run.version, worker=worker, like=like, cosine=cosine))


def _copied(made: Made) -> list[tuple[str, str, float]]:
    """(worker, like, cosine), one row for each worker whose update was a copy of another's."""
    rows: dict[str, tuple[str, float]] = {}
    for i, j, cosine in made.review.copies:
        a, b = made.slots[i].worker, made.slots[j].worker
        rows.setdefault(a, (b, cosine))
        rows.setdefault(b, (a, cosine))
    return [(worker, like, cosine) for worker, (like, cosine) in rows.items()]


def _score(member: Member | None) -> float:
    return 1.0 if member is None else member.reputation.score.value or 0.0


def _exclude(run: Run, member: Member) -> None:
    """Quarantine, unless too few would remain: then the rule goes on bearing with it, and its score says so."""
    assert run.stepper is not None
    rest = [other for other in run.members.voters() if other is not member]
    if len(rest) < run.stepper.need(rest):
        return
    member.barred_until = run.version + term(member.barred)
    member.barred += 1
    score = _score(member)
    run.emit(events.Quarantined(time_s=run.now, worker=member.name, score=score, until=member.barred_until))


def _release(run: Run, member: Member, why: str) -> None:
    member.barred_until, member.reputation = None, Reputation(copies=member.reputation.copies)
    run.emit(events.Released(time_s=run.now, worker=member.name, why=why))
