"""How many steps the next rounds of a worker have, told with each receipt where the run fits them to the workers.

Rule of this file: it decides from what the journal keeps (an update's own numbers, who is there), so that a replay
gives every worker the same rounds.
"""

from __future__ import annotations

from lightning_async.server.members import Member
from lightning_async.server.run import Run
from lightning_async.telemetry import events
from lightning_async.wire.messages import Push


def next_round(run: Run, member: Member, push: Push) -> int:
    """Steps of this worker's next rounds, after `push` of it; 0 where all are as configured."""
    sizing = run.rules.sizing
    if sizing.of is None:
        return 0
    member.speed = member.speed.after(push.step_s, push.exchange_s)
    before = member.round_steps or sizing.first
    after = sizing.of(before, member.speed, [other.speed for other in run.members.voters() or [member]])
    member.round_steps = after
    if after != before:
        run.emit(events.RoundSized(time_s=run.now, worker=member.name, before=before, after=after))
    return after
