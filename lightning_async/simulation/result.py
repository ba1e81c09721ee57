"""What came of a simulation, as data. Staleness is in versions, time in virtual seconds, shares are between 0 and 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from lightning_async.server import Coordinator
from lightning_async.simulation.clock import Clock
from lightning_async.simulation.scenario import Scenario
from lightning_async.simulation.worker import Worker
from lightning_async.telemetry import Histogram
from lightning_async.wire.messages import Reason


@dataclass(frozen=True)
class Point:
    """The loss of the published parameters at one moment."""

    time_s: float
    steps: int
    version: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What one worker, or all of them, did.

    `utilisation`: computing, of the time from the first parameters to the end. `acceptance`: accepted, of the updates
    that got a receipt before the run was over. `sent` is to the server, `received` from it.
    """

    name: str
    speed: float
    steps: int
    utilisation: float
    accepted: int
    refused: dict[str, int]
    acceptance: float
    staleness_mean: float
    staleness_p99: int
    sent_bytes: int
    received_bytes: int
    lives: int
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """`time_to_loss_s`: when the curve first was at the scenario's target; None when it never was, or has none."""

    scenario: str
    seed: int
    seconds: float
    ended: str
    versions: int
    steps: int
    final_loss: float | None
    target_loss: float | None
    time_to_loss_s: float | None
    total: Numbers
    workers: tuple[Numbers, ...]
    curve: tuple[Point, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def worker(self, name: str) -> Numbers:
        """The numbers of the worker called `name`."""
        return next(worker for worker in self.workers if worker.name == name)


class Past(Protocol):
    """A simulation that has happened."""

    scenario: Scenario
    coordinator: Coordinator
    clock: Clock
    workers: list[Worker]


def result_of(past: Past, seconds: float, curve: Sequence[Point]) -> Result:
    """What came of `past`, which lasted `seconds`."""
    run, scenario = past.coordinator.run, past.scenario
    reached = [] if scenario.target_loss is None else [p.time_s for p in curve if p.loss <= scenario.target_loss]
    return Result(
        scenario=scenario.name,
        seed=scenario.seed,
        seconds=seconds,
        ended=run.ended,
        versions=max(run.version, 0),
        steps=run.steps_total,
        final_loss=curve[-1].loss if curve else None,
        target_loss=scenario.target_loss,
        time_to_loss_s=reached[0] if reached else None,
        total=_numbers("all", past, past.workers),
        workers=tuple(_numbers(worker.place.name, past, [worker]) for worker in past.workers),
        curve=tuple(curve),
    )


def _numbers(name: str, past: Past, workers: Sequence[Worker]) -> Numbers:
    diaries = [worker.diary for worker in workers]
    named = (past.coordinator.run.members.named(name) for diary in diaries for name in diary.names)
    members = [member for member in named if member is not None]
    refused: Counter[str] = Counter()
    staleness: Counter[int] = Counter()
    for member in members:
        refused.update({reason: n for reason, n in member.refused.items() if reason != Reason.STOPPING.value})
        staleness.update(member.staleness.counts)
    accepted = sum(member.accepted for member in members)
    answered = accepted + refused.total()
    return Numbers(
        name=name,
        speed=sum(worker.place.speed for worker in workers),
        steps=sum(diary.steps for diary in diaries),
        utilisation=_share(sum(d.computed_s for d in diaries), sum(d.trained_s for d in diaries)),
        accepted=accepted,
        refused=dict(refused),
        acceptance=_share(accepted, answered),
        staleness_mean=_share(sum(s * n for s, n in staleness.items()), staleness.total()),
        staleness_p99=Histogram(staleness).quantile(0.99),
        sent_bytes=sum(diary.sent_bytes for diary in diaries),
        received_bytes=sum(diary.received_bytes for diary in diaries),
        lives=sum(len(diary.names) for diary in diaries),
        failures=tuple(failure for diary in diaries for failure in diary.failures),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
