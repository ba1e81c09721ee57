"""What a run that goes on has and a run that begins again has not: who is there, through which connection, and times.

memory.py keeps what outlives a server. The events of a journal after a snapshot come from the workers that were there
when it was taken, and have to find them there. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_async.layout import read_manifest
from lightning_async.server.members import Member
from lightning_async.server.run import Run
from lightning_async.staleness import Pace, Rate
from lightning_async.wire.session import State

TIMES = ("joined_at", "seen_at", "before_s")


def dump(run: Run) -> dict[str, Any]:
    """JSON values."""
    return {
        "now": run.now,
        "started_at": run.started_at,
        "ended": run.ended,
        "rate": run.rate.as_dict(),
        "complete_at": [] if run.stepper is None else [buffer.complete_at for buffer in run.stepper.waiting],
        "members": {member.name: _member(member) for member in run.members},
    }


def restore(run: Run, values: Mapping[str, Any]) -> None:
    """Give a run that memory.py has restored this back too."""
    run.now, run.started_at, run.ended = values["now"], values["started_at"], values["ended"]
    run.rate = Rate.read(values["rate"])
    for buffer, time in zip(run.stepper.waiting if run.stepper is not None else (), values["complete_at"], strict=True):
        buffer.complete_at = time
    for name, own in values["members"].items():
        member = run.members.named(name)
        assert member is not None
        member.peer, member.digest, member.host = bytes.fromhex(own["peer"]), own["digest"], own["host"]
        member.state = State(own["state"])
        member.layout = None if own["layout"] is None else read_manifest(own["layout"])
        for time in TIMES:
            setattr(member, time, own[time])
        member.pace = Pace.read(own["pace"])
        if member.alive:
            run.members.revive(member)


def _member(member: Member) -> dict[str, Any]:
    return {
        "peer": member.peer.hex(),
        "digest": member.digest,
        "host": dict(member.host),
        "state": member.state.value,
        "layout": None if member.layout is None else member.layout.manifest,
        "pace": member.pace.as_dict(),
    } | {time: getattr(member, time) for time in TIMES}
