"""The run's state for people: the `status` record and the one-line repr."""

from __future__ import annotations

import math
from typing import Any

from lightning_async.server import pacing
from lightning_async.server.members import Member
from lightning_async.server.run import Run
from lightning_async.server.standing import shortage
from lightning_async.telemetry import Histogram

MOST_SHOWN = 1000  # members in one report, the live ones first


def line(run: Run) -> str:
    """`<Server v1204 | workers 7/8 | quorum 3/4 | staleness p50 1 max 4>`"""
    live, known = len(run.members.workers()), sum(1 for member in run.members if member.role == "worker")
    waiting = max((len(buffer) for buffer in run.stepper.waiting), default=0) if run.stepper is not None else 0
    need = run.stepper.need(run.members.voters()) if run.stepper is not None else run.config.quorum
    oldest = max(run.staleness.counts, default=0)
    return (
        f"<Server v{run.version} | workers {live}/{known} | quorum {waiting}/{need} "
        f"| staleness p50 {run.staleness.quantile(0.5)} max {oldest}{_short(run)}>"
    )


def _short(run: Run) -> str:
    short = shortage(run)
    return "" if short is None else f" | waits for workers: {short[0]} of {short[1]}"


def state(run: Run, now: float) -> dict[str, Any]:
    """Everything that `status` shows, in plain values; seconds and bytes."""
    live = run.members.workers()
    workers = [member for member in run.members if member.role == "worker"]
    shown = sorted(workers, key=lambda member: not member.alive)[:MOST_SHOWN]
    return {
        "run": run.name,
        "run_id": run.id,
        "line": line(run),
        "version": run.version,
        "uptime_s": now - run.started_at,
        "parameters": run.layout.d if run.layout is not None else 0,
        "buffers": run.layout.b if run.layout is not None else 0,
        "steps": run.steps_total,
        "ended": run.ended,
        "live": len(live),
        "quorum": _quorum(run),
        "staleness": run.staleness.as_dict(),
        **_ages(run.staleness),
        "acceptance": _share(sum(m.accepted for m in workers), sum(m.refused.total() for m in workers)),
        "refused_strangers": run.refused_strangers,
        "streams": {name: ledger.state() for name, ledger in run.streams.items()},
        "config": run.config.as_dict(),
        "changed": {name: dict(row) for name, row in run.changed.items()},
        "workers": {member.name: _member(run, member, now) for member in shown},
        "hidden": len(workers) - len(shown),
        "observers": sum(1 for member in run.members if member.role == "observer" and member.alive),
    }


def _quorum(run: Run) -> dict[str, Any]:
    """`waiting`: updates of distinct workers, a number for each group; `need` of them make a step; `have`: workers
    whose updates are taken; `why`: what it waits for while these are too few."""
    short, voters = shortage(run), run.members.voters()
    return {
        "waiting": [len(buffer) for buffer in run.stepper.waiting] if run.stepper is not None else [],
        "need": run.stepper.need(voters) if run.stepper is not None else 0,
        "have": len(voters),
        "why": "" if short is None else short[2],
    }


def _ages(staleness: Histogram) -> dict[str, float | None]:
    return {"staleness_mean": staleness.mean, "staleness_p99": staleness.quantile(0.99) if staleness.counts else None}


def _share(accepted: int, refused: int) -> float | None:
    """Of all that was sent, what was taken; None before anything was."""
    return accepted / (accepted + refused) if accepted + refused else None


def _member(run: Run, member: Member, now: float) -> dict[str, Any]:
    return {
        "state": member.state.value,
        "group": member.group,
        "rank": member.rank,
        "host": member.host,
        "seconds": member.seconds(now),
        "silent_s": now - member.seen_at,
        "accepted": member.accepted,
        "refused": dict(member.refused),
        "steps": member.steps,
        "samples": member.samples,
        "staleness": member.staleness.as_dict(),
        **_ages(member.staleness),
        "bound": None if (bound := pacing.bound(run, member)) == math.inf else bound,
        "acceptance": _share(member.accepted, member.refused.total()),
        "late": member.pace.late,
        "round_s": member.round_s.value,
        "round_steps": member.round_steps or run.rules.sizing.first,
        **member.speed.as_dict(),
        "loss": member.loss,
        "lost": member.lost,
        "codec": member.codec or run.config.compression,
        "reputation": member.reputation.as_dict(),
        "quarantined_until": member.barred_until,
        "sent_bytes": member.sent_bytes,
        "received_bytes": member.received_bytes,
    }
