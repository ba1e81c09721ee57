"""The run's state for people: the `status` record and the one-line repr."""

from __future__ import annotations

from typing import Any

from lightning_async.server.members import Member
from lightning_async.server.run import Run

MOST_SHOWN = 1000  # members in one report, the live ones first


def line(run: Run) -> str:
    """`<Server v1204 | workers 7/8 | quorum 3/4 | staleness p50 1 max 4>`"""
    live, known = len(run.members.workers()), sum(1 for member in run.members if member.role == "worker")
    waiting = max((len(buffer) for buffer in run.stepper.waiting), default=0) if run.stepper is not None else 0
    need = run.stepper.need(run.members.workers()) if run.stepper is not None else run.config.quorum
    oldest = max(run.staleness.counts, default=0)
    return (
        f"<Server v{run.version} | workers {live}/{known} | quorum {waiting}/{need} "
        f"| staleness p50 {run.staleness.quantile(0.5)} max {oldest}>"
    )


def state(run: Run, now: float) -> dict[str, Any]:
    """Everything that `status` shows, in plain values; seconds and bytes."""
    live = run.members.workers()
    workers = [member for member in run.members if member.role == "worker"]
    shown = sorted(workers, key=lambda member: not member.alive)[:MOST_SHOWN]
    waiting = [len(buffer) for buffer in run.stepper.waiting] if run.stepper is not None else []
    return {
        "run": run.name,
        "line": line(run),
        "version": run.version,
        "uptime_s": now - run.started_at,
        "parameters": run.layout.d if run.layout is not None else 0,
        "buffers": run.layout.b if run.layout is not None else 0,
        "steps": run.steps_total,
        "ended": run.ended,
        "live": len(live),
        "quorum": {"waiting": waiting, "need": run.stepper.need(live) if run.stepper is not None else 0},
        "staleness": run.staleness.as_dict(),
        "refused_strangers": run.refused_strangers,
        "streams": {name: {"length": s.length, "position": s.position} for name, s in run.streams.items()},
        "config": run.config.as_dict(),
        "workers": {member.name: _member(run, member, now) for member in shown},
        "hidden": len(workers) - len(shown),
        "observers": sum(1 for member in run.members if member.role == "observer" and member.alive),
    }


def _member(run: Run, member: Member, now: float) -> dict[str, Any]:
    return {
        "state": member.state.value,
        "group": member.group,
        "rank": member.rank,
        "host": member.host,
        "seconds": now - member.joined_at,
        "silent_s": now - member.seen_at,
        "accepted": member.accepted,
        "refused": dict(member.refused),
        "steps": member.steps,
        "samples": member.samples,
        "staleness": member.staleness.as_dict(),
        "round_s": member.round_s.value,
        "loss": member.loss,
        "codec": member.codec or run.config.compression,
        "sent_bytes": member.sent_bytes,
        "received_bytes": member.received_bytes,
    }
