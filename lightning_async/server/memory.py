"""A run as plain values and tensors, and back: what a snapshot holds. Pure; the files are persistence's.

A run that is restored goes on as if nothing had happened since: parameters, what was published of them, optimizer,
codec and aggregator states, updates that wait for their quorum, every worker's numbers and last receipts. Its members
are all away and join again by themselves. Not kept: what was never acknowledged, the deltas of older versions (a worker
that is behind gets a snapshot), and that the run had ended.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.layout import read_manifest
from lightning_async.scheduling import Capability, Ledger, Speed
from lightning_async.server import steps_memory
from lightning_async.server.members import Member
from lightning_async.server.reputation import Reputation
from lightning_async.server.run import Run
from lightning_async.staleness import Pace, Rate
from lightning_async.telemetry import Ewma, Histogram
from lightning_async.wire.messages import Ranges, Receipt
from lightning_async.wire.session import State

# What may differ between a snapshot and the configuration that it is restored under: nothing stored depends on it.
FREE = frozenset(
    {"total_steps", "epochs", "workers", "quorum", "grace_s", "quarantine_below", "barrier_s", "beat_s", "patience_s"}
    | {"scheduler", "predictor"}
)
WHO = ("instance", "role", "group", "rank")
COUNTS = (
    "last_seq",
    "included",
    "accepted",
    "steps",
    "samples",
    "last_samples",
    "sent_bytes",
    "received_bytes",
    "lost",
)
NUMBERS = (*WHO, *COUNTS, "loss", "codec", "round_steps", "barred", "barred_until")


def dump(run: Run) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(record, tensors) of `run`: JSON values, and tensors that nobody writes to afterwards."""
    record: dict[str, Any] = {
        "run": run.name,
        "run_id": run.id,
        "config": run.config.as_dict(),
        "changed": {name: dict(row) for name, row in run.changed.items()},
        "steps_total": run.steps_total,
        "staleness": run.staleness.as_dict(),
        "rate": run.rate.as_dict(),
        "refused_strangers": run.refused_strangers,
        "initialiser": run.initialiser,
        "streams": {name: ledger.dump() for name, ledger in run.streams.items()},
        "shared": dict(run.shared),
        "members": {member.name: _member(member, run.now) for member in run.members},
    }
    if run.stepper is None or run.layout is None:
        return record, {}
    stepper, tensors = steps_memory.dump(run.stepper)
    return record | {"layout": run.layout.manifest, "stepper": stepper}, tensors


def restore(run: Run, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Make a fresh `run` the one of the record. Raises ConfigError, with all differences, for another configuration."""
    differing = differences(run.config, record["config"])
    if differing:
        raise ConfigError(
            f"the snapshot belongs to another configuration: {'; '.join(differing)}. Give the run's own "
            "(`lightning-async resume` does), or another state_dir to begin anew"
        )
    run.name, run.initialiser = record["run"], record["initialiser"]
    run.steps_total, run.refused_strangers = record["steps_total"], record["refused_strangers"]
    run.staleness, run.rate = _histogram(record["staleness"]), Rate.read(record["rate"]).paused()
    run.streams = {name: Ledger.restored(values) for name, values in record["streams"].items()}
    run.shared = dict(record["shared"])
    run.changed = {name: dict(row) for name, row in record.get("changed", {}).items()}
    for name, values in record["members"].items():
        run.members.remember(_read_member(name, values))
    if run.config.quarantine_below is None:
        for member in run.members:
            member.barred_until = None
    if "stepper" in record:
        run.layout = read_manifest(record["layout"])
        run.stepper = steps_memory.restored(run.config, run.rules, run.layout, record["stepper"], tensors)
        run.restored_at = run.version


def differences(config: RunConfig, stored: Mapping[str, Any]) -> list[str]:
    """Where `config` differs from a snapshot's, one clause each."""
    ours = config.as_dict()
    names = sorted((ours.keys() | stored.keys()) - FREE)
    return [
        f"{name} is {stored.get(name)!r} in the snapshot, {ours.get(name)!r} here"
        for name in names
        if ours.get(name) != stored.get(name)
    ]


def _member(member: Member, now: float) -> dict[str, Any]:
    return {name: getattr(member, name) for name in NUMBERS} | {
        "before_s": member.seconds(now),
        "refused": dict(member.refused),
        "staleness": member.staleness.as_dict(),
        "round_s": member.round_s.value,
        "pace": member.pace.as_dict(),
        "speed": member.speed.as_dict(),
        "bytes_per_s": member.bytes_per_s,
        "learnt": [member.learnt_by, list(member.learnt)],
        "machine": asdict(member.machine),
        "reputation": member.reputation.as_dict(),
        "included_of": {str(group): seq for group, seq in member.included_of.items()},
        "hyper": {str(group): copy.deepcopy(report) for group, report in member.hyper.items()},
        "receipts": [asdict(receipt) for receipt in member.receipts.values()],
        "granted": {stream: asdict(ranges) | {"number": n} for stream, (n, ranges) in member.granted.items()},
    }


def _read_member(name: str, values: Mapping[str, Any]) -> Member:
    member = Member(name, "", "worker", "", 0, b"", "", 0.0, 0.0, state=State.GONE)
    for key in NUMBERS:
        setattr(member, key, values.get(key, getattr(member, key)))
    member.before_s, member.refused = values["before_s"], Counter(values["refused"])
    member.staleness, member.round_s = _histogram(values["staleness"]), Ewma(values["round_s"])
    member.reputation, member.pace = Reputation.read(values["reputation"]), Pace.read(values["pace"]).away()
    member.speed = Speed.read(values["speed"])
    member.included_of = {int(group): seq for group, seq in values["included_of"].items()}
    member.hyper = {int(group): report for group, report in values["hyper"].items()}
    member.bytes_per_s, member.machine = values.get("bytes_per_s", 0.0), Capability(**values.get("machine", {}))
    member.learnt_by, member.learnt = values.get("learnt", ["", []])
    member.receipts = OrderedDict((row["seq"], Receipt(**row)) for row in values["receipts"])
    for stream, row in values.get("granted", {}).items():
        member.granted[stream] = (row["number"], Ranges(**{name: row[name] for name in row.keys() - {"number"}}))
    return member


def _histogram(counts: Mapping[str, int]) -> Histogram:
    return Histogram(Counter({int(value): count for value, count in counts.items()}))
