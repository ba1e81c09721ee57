"""How fast the run and its workers are in the server's sight, and what follows: how old each one's update may be, and
for whom a barrier waits.

A barrier (quorum "all") is never held up for good by a worker that is there and sends nothing: it goes on without one
that takes four times as long as it usually does, and longer than the run's patience. Such a worker is late; the next
barriers do not wait for it until it has sent an update again, which is then too old where the bound is 0, and its
progress goes with the next. Nor does a barrier wait for a worker whose last two updates were refused.

Rule of this file: only events that the journal keeps change anything here (joining, updates, versions, ticks that did
something), since a replay must decide alike. What a worker says about its own times is for people only.
"""

from __future__ import annotations

from dataclasses import replace

from lightning_async.server.members import Member
from lightning_async.server.run import Run
from lightning_async.staleness import Sight
from lightning_async.telemetry import events

LATE_FACTOR = 4.0  # times a worker's usual round
MOST_ROUNDS = 20  # that a lease may last: who claims tiny rounds holds nothing for ever


def bound(run: Run, member: Member) -> float:
    """The largest staleness that is accepted from this worker now, in versions; math.inf for any."""
    return run.rules.policy.of(Sight(member.pace, run.rate, len(run.members.workers()), run.now))


def note_start(run: Run) -> None:
    """The run has its first parameters: everybody who waited for them begins a round."""
    for member in run.members.workers():
        member.pace = member.pace.begun(run.now, run.version)


def note_arrival(run: Run, member: Member, taken: bool) -> None:
    """An update of this worker has come, and was accepted or not."""
    member.pace = member.pace.after(run.now, run.version, run.rate, len(run.members.workers()), taken)


def note_version(run: Run) -> None:
    """A version was made just now."""
    run.rate = run.rate.after(run.now, len(run.members.workers()))


def awaited(run: Run) -> list[Member]:
    """The live workers whose updates are taken, without those that a barrier does not wait for."""
    voters = run.members.voters()
    if run.config.quorum != "all" or run.stepper is None:
        return voters
    here = {slot.worker for buffer in run.stepper.waiting for slot in buffer}
    if here:
        _note_late(run, [member for member in voters if member.name not in here and not member.pace.late])
    return [member for member in voters if not member.pace.late]


def _note_late(run: Run, missing: list[Member]) -> None:
    """Find those of the missing for whom a barrier has waited long enough."""
    rounds = [member.pace.round_s.value or 0.0 for member in run.members.voters()]
    for member in missing:
        waited = run.now - (run.now if member.pace.since is None else member.pace.since)
        if waited > _allowed(run, member, max(rounds, default=0.0)):
            member.pace = replace(member.pace, late=True)
            run.emit(events.Late(time_s=run.now, worker=member.name, waited_s=waited))


def _allowed(run: Run, member: Member, longest: float) -> float:
    """Seconds from the begin of its round; of one without a usual round, `longest` of the others' stands for it."""
    if run.config.barrier_s is not None:
        return run.config.barrier_s
    usual = member.pace.round_s.value
    return max(run.config.patience_s, LATE_FACTOR * (longest if usual is None else usual))


def lease_s(run: Run, member: Member, samples: int) -> float:
    """How long a lease may last of a worker that holds `samples` in all: LATE_FACTOR times what its usual round and
    training on them takes, at least the run's patience. One without a usual round is taken for the slowest."""
    rounds = [other.pace.round_s.value or 0.0 for other in run.members.workers()]
    usual = member.pace.round_s.value
    usual = max(rounds, default=0.0) if usual is None else usual
    held = min(samples / member.last_samples if member.last_samples else 0.0, MOST_ROUNDS) * usual
    return max(run.config.patience_s, LATE_FACTOR * (usual + held))
