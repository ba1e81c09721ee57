"""`plan`: which round length, codec and quorum suit these machines and lines, and what utilisation to expect. Analytic.

A worker computes C = H x step_s in a round. Meanwhile the exchange of the round before goes on: the update up, a round
trip, and the parameters down, X = U / up + RTT + D / down. The next round ends in a wait when X > C, so rounds begin
every T = max(C, X) seconds and utilisation is C / T. D is the deltas of the versions that all workers made in T, or
the snapshot where that is smaller. What workers move in T may be more than a line that they share takes, the server's
or their site's; then T grows.

What it leaves out: jitter, loss, brownouts, encoding, and that newer parameters are fetched while a round runs too,
within a quarter of the line. tests/simulation/test_planning.py holds it against the simulator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lightning_async.codecs import download_codec, upload_codec
from lightning_async.errors import ConfigError
from lightning_async.links.link import MEGABIT, Link
from lightning_async.simulation.scenario import Scenario, Trunk
from lightning_async.simulation.tasks import task

CODECS = ("none", "fp16", "int8", "int4", "topk")  # from what changes the update least to what it changes most
LONGEST_ROUND = 1024
COMFORTABLE = 32  # steps in a round, beyond which a stronger codec is the better choice
SAMPLE = 2**18  # numbers that are encoded to learn what a codec takes
ROUNDS_UNTIL_SETTLED = 30  # of the fixed-point iteration over periods


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One worker: seconds of a step, and its line."""

    step_s: float
    link: Link
    site: str = ""  # those of one site share its trunk


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to expect of one codec and one round length, worker by worker."""

    compression: str
    local_steps: int
    quorum: int
    upload_bytes: int
    download_bytes: tuple[float, ...]
    """In a round of each worker."""
    utilisation: tuple[float, ...]
    staleness: tuple[float, ...]
    """Versions that others make during a round of this worker."""
    period_s: tuple[float, ...]
    versions_per_hour: float
    server_load: float
    """Share of the server's line, the busier direction."""

    @property
    def least(self) -> float:
        """The utilisation of the worker that waits most."""
        return min(self.utilisation)


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is to be planned: `parameters` of the model, the machines, the server's line, trunks of sites by name."""

    parameters: int
    machines: tuple[Machine, ...]
    server: Link
    trunks: Mapping[str, Trunk] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.parameters < 1 or not self.machines or min(m.step_s for m in self.machines) <= 0:
            raise ConfigError(f"got {self!r}, expected parameters >= 1 and machines with step_s > 0")


def demand_in(scenario: Scenario, parameters: int | None = None) -> Demand:
    """The machines and lines of `scenario`. `parameters` None: those of its task."""
    if parameters is None:
        parameters = sum(p.numel() for p in task(scenario.task).model().parameters())
    machines = tuple(
        Machine(step_s=scenario.step_s / place.speed, link=place.group.link, site=place.group.name)
        for place in scenario.places()
    )
    trunks = {group.name: group.trunk for group in scenario.workers if group.trunk is not None}
    return Demand(parameters=parameters, machines=machines, server=scenario.server, trunks=trunks)


def recommend(demand: Demand, target: float = 0.95, codecs: Sequence[str] = CODECS) -> tuple[Plan, tuple[Plan, ...]]:
    """(the plan to take, the best plan of every codec).

    Each codec gets the shortest round that keeps every worker at `target` or above; taken is the gentlest codec whose
    round is comfortable, or else the one with the shortest.
    """
    if not 0 < target < 1:
        raise ConfigError(f"got target={target!r}, expected a utilisation between 0 and 1")
    plans = tuple(_shortest(demand, target, spec) for spec in codecs)
    fine = [plan for plan in plans if plan.least >= target]
    comfortable = [plan for plan in fine if plan.local_steps <= COMFORTABLE]
    if comfortable:
        return comfortable[0], plans
    return min(fine or plans, key=lambda plan: (plan.local_steps, -plan.least)), plans


def _shortest(demand: Demand, target: float, compression: str) -> Plan:
    steps = 1
    while steps < LONGEST_ROUND and predict(demand, compression, steps).least < target:
        steps *= 2
    return predict(demand, compression, steps)


def predict(
    demand: Demand, compression: str, local_steps: int, quorum: int | None = None, download: str | None = None
) -> Plan:
    """What to expect of this codec and round length; `quorum` None takes the one that bounds staleness.

    That is the smallest with which nobody's updates are older than twice the number of workers. `download` is the codec
    of deltas; None: the usual one.
    """
    upload, delta = sizes(demand.parameters, compression, download)
    periods, down, load = _settle(demand, local_steps, upload, delta, quorum or 1)
    if quorum is None:
        quorum = min(len(periods), math.ceil(max(_staleness(periods, 1)) / (2 * len(periods))) or 1)
        periods, down, load = _settle(demand, local_steps, upload, delta, quorum)
    return Plan(
        compression=compression,
        local_steps=local_steps,
        quorum=quorum,
        upload_bytes=int(upload),
        download_bytes=tuple(down),
        utilisation=tuple(local_steps * m.step_s / t for m, t in zip(demand.machines, periods, strict=True)),
        staleness=tuple(_staleness(periods, quorum)),
        period_s=tuple(periods),
        versions_per_hour=3600 * sum(1 / t for t in periods) / quorum,
        server_load=load,
    )


def sizes(parameters: int, compression: str, deltas: str | None = None) -> tuple[float, float]:
    """(bytes of an update, bytes of a version's delta) of that many parameters, measured on normal numbers."""
    upload = upload_codec(compression)
    download = download_codec(deltas, upload)
    vector = torch.randn(min(parameters, SAMPLE), generator=torch.Generator().manual_seed(0))
    found = []
    for codec in (upload, download):
        payload, _ = codec.encode(vector, codec.init(vector.numel()))
        found.append(memoryview(payload).nbytes * parameters / vector.numel())
    return found[0], found[1]


def _settle(
    demand: Demand, steps: int, upload: float, delta: float, quorum: int
) -> tuple[list[float], list[float], float]:
    """(seconds between the rounds of each worker, bytes that it fetches in one, share of the server's line that they
    take)."""
    down: list[float] = []
    periods, load = [steps * machine.step_s for machine in demand.machines], 0.0
    for _ in range(ROUNDS_UNTIL_SETTLED):
        made = sum(1 / period for period in periods) / quorum
        down = [min(4.0 * demand.parameters, max(1.0, made * period) * delta) for period in periods]
        exchanges = [_exchange_s(m.link, upload, size) for m, size in zip(demand.machines, down, strict=True)]
        periods = [max(steps * m.step_s, x) for m, x in zip(demand.machines, exchanges, strict=True)]
        for site, trunk in demand.trunks.items():
            here = [i for i, machine in enumerate(demand.machines) if machine.site == site]
            share = _load(upload, down, periods, here, trunk.up_mbps * MEGABIT, trunk.down_mbps * MEGABIT)
            for i in here:
                periods[i] *= max(1.0, share)
        everybody = range(len(periods))
        server = demand.server
        load = _load(upload, down, periods, everybody, server.bytes_per_s("down"), server.bytes_per_s("up"))
        periods = [period * max(1.0, load) for period in periods]
    return periods, down, load


def _load(
    upload: float, down: Sequence[float], periods: Sequence[float], who: Sequence[int], up_rate: float, down_rate: float
) -> float:
    """The share of a common line, its busier direction, that the workers `who` take, bytes per second."""
    upwards = sum(upload / periods[i] for i in who)
    downwards = sum(down[i] / periods[i] for i in who)
    return max(upwards / up_rate, downwards / down_rate)


def _exchange_s(link: Link, upload: float, download: float) -> float:
    return upload / link.bytes_per_s("up") + link.rtt_s + download / link.bytes_per_s("down")


def _staleness(periods: Sequence[float], quorum: int) -> list[float]:
    rate = sum(1 / period for period in periods)
    return [(rate - 1 / period) * period / quorum for period in periods]
