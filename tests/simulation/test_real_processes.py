"""The same scenario on real processes, sockets and clocks: throughput and staleness agree with the simulation.

Steps last half a second at speed 1 by sleeping, so that the speed of the machine does not matter.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import pytest

from lightning_async.config import RunConfig
from lightning_async.server import ServerThread
from lightning_async.simulation import Simulation, scenario_of
from lightning_async.telemetry import Event, Memory
from lightning_async.telemetry.events import Accepted

pytestmark = pytest.mark.slow
SPEEDS, STEP_S, LIMIT_S = (2.0, 1.0, 0.5, 0.3), 0.5, 200.0
RUN = {"local_steps": 4, "total_steps": 280}
PROGRAM = Path(__file__).parent / "scripts" / "paced.py"


def numbers(events: Iterable[Event]) -> tuple[float, float, dict[str, float]]:
    """(steps a second, mean staleness, each worker's share of the steps) of the accepted updates but the first."""
    updates = [event for event in events if isinstance(event, Accepted)]
    steps = sum(event.steps for event in updates[1:])
    shares = {
        event.worker: sum(other.steps for other in updates if other.worker == event.worker) / (steps + updates[0].steps)
        for event in updates
    }
    staleness = sum(event.staleness for event in updates) / len(updates)
    return steps / (updates[-1].time_s - updates[0].time_s), staleness, shares


def simulated() -> list[Event]:
    sink = Memory(keep=10_000)
    line = {"up_mbps": 10_000.0, "down_mbps": 10_000.0, "latency_ms": 0.05}
    groups = [{"name": f"w{i}", "speed": speed, "link": line} for i, speed in enumerate(SPEEDS)]
    values = {"task": "digits()", "step_s": STEP_S, "step_jitter": 0.0, "workers": groups, "run": RUN}
    Simulation(scenario_of(values), sinks=[sink]).run()
    return list(sink.events)


def real() -> list[Event]:
    sink = Memory(keep=10_000)
    with ServerThread(RunConfig(**RUN, workers=len(SPEEDS)), sinks=[sink]) as server, ExitStack() as stack:
        workers = []
        for i, speed in enumerate(SPEEDS):
            command = [sys.executable, str(PROGRAM), server.address, f"w{i}", str(i), str(STEP_S / speed)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            workers.append(stack.enter_context(subprocess.Popen(command, **pipes)))
            stack.callback(workers[-1].kill)
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        for worker in workers:
            assert worker.wait(LIMIT_S) == 0
    return list(sink.events)


def test_the_simulation_tells_what_real_processes_do():
    (rate, staleness, shares), (real_rate, real_staleness, real_shares) = numbers(simulated()), numbers(real())
    assert rate == pytest.approx(sum(SPEEDS) / STEP_S, rel=0.05)
    assert real_rate == pytest.approx(rate, rel=0.15)
    assert real_staleness == pytest.approx(staleness, rel=0.15)
    assert real_shares == pytest.approx(shares, abs=0.05)
