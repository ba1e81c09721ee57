"""What the run's scheduler looks at when a worker asks for samples, and what its predictor learns.

Rule of this file: only what the journal keeps may count (Hello, Lease, updates), since a replay must decide alike.
"""

from __future__ import annotations

from collections.abc import Callable

from lightning_async.scheduling import Ledger, Market, Telemetry, Unit, Worker
from lightning_async.server import pacing
from lightning_async.server.members import Member
from lightning_async.server.run import Run
from lightning_async.wire import messages as m

MOST_WORKERS = 32  # in one market: those that asked last
UNITS_EACH = 2
USUAL = 100.0  # samples; how many good ones a worker is believed to have behind it when it comes


def chosen(run: Run, ledger: Ledger, member: Member, lease: m.Lease, count: int, upto: int | None) -> Unit | None:
    """The unit that `member` gets; None when there is none, or the scheduler passes it over."""
    if not run.rules.scheduler.looks:
        units = _usable(lease, ledger.units(count, 1, upto))
        return units[0] if units else None
    workers = [member, *_others(run, ledger, member)]
    most = UNITS_EACH * len(workers)
    units = _usable(lease, ledger.units(count, most + 1, upto, apart=not lease.whole))
    if not units:
        return None
    market = Market(
        workers=tuple(_worker(run, one, ledger) for one in workers),
        units=tuple(units[:most]),
        newest=ledger.newest,
        more=upto is None or len(units) > most,
    )
    index = run.rules.scheduler.choose(market)
    return None if index is None else units[index]


def _usable(lease: m.Lease, units: list[Unit]) -> list[Unit]:
    """The whole batches in `units`, for a worker that trains on nothing else."""
    if not lease.whole:
        return units
    return [unit.first(unit.size // lease.batch * lease.batch) for unit in units if unit.size >= lease.batch]


def observe(run: Run, member: Member, samples: int) -> None:
    """An update of `member` with so many leased samples was accepted, before its next round begins."""
    rule = run.rules.predictor
    if not run.rules.scheduler.looks or member.pace.since is None or not samples:
        return
    before = member.learnt if member.learnt_by == rule.spec else []
    member.learnt_by, member.learnt = rule.spec, rule.observe(before, samples, max(0.0, run.now - member.pace.since))


def _others(run: Run, ledger: Ledger, member: Member) -> list[Member]:
    """Who else will ask: workers that have, not longer ago than their rounds explain."""
    asked = sorted(ledger.asked.items(), key=lambda item: -item[1])
    found = [(run.members.named(name), at) for name, at in asked if name != member.name]
    there = [
        other
        for other, at in found
        if other is not None
        and other.counts
        and not other.quarantined
        and run.now - at <= pacing.lease_s(run, other, ledger.held(other.name))
    ]
    return there[: MOST_WORKERS - 1]


def _worker(run: Run, member: Member, ledger: Ledger) -> Worker:
    good = member.samples + USUAL
    return Worker(
        name=member.name,
        seconds=_seconds(run, member),
        capability=member.machine,
        telemetry=Telemetry(
            bytes_per_s=member.bytes_per_s,
            reliability=good / (good + member.lost),
            held=ledger.held(member.name),
        ),
    )


def _seconds(run: Run, member: Member) -> Callable[[int], float]:
    """What the predictor says of this worker; of one that it does not know, the mean of those that it does."""

    def seconds(samples: int) -> float:
        own = _predicted(run, member, samples)
        if own is not None:
            return own
        known = [s for other in run.members.workers() if (s := _predicted(run, other, samples)) is not None]
        return sum(known) / len(known) if known else float(samples)

    return seconds


def _predicted(run: Run, member: Member, samples: int) -> float | None:
    rule = run.rules.predictor
    return rule.seconds(member.learnt, samples) if member.learnt_by == rule.spec else None
