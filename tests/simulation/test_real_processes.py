"""The same scenario on real processes, sockets and clocks: throughput and staleness agree with the simulation.

Steps last half a second at speed 1 by sleeping, so that the speed of the machine does not matter; a run in which it
stood still for longer than a step is not compared but done again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from children import Children
from eventually import ENOUGH_S

from lightning_async.config import RunConfig
from lightning_async.server import ServerThread
from lightning_async.simulation import Simulation, scenario_of
from lightning_async.telemetry import Event, Memory
from lightning_async.telemetry.events import Accepted

pytestmark = pytest.mark.slow
SPEEDS, STEP_S = (2.0, 1.0, 0.5, 0.3), 0.5
RUN = {"local_steps": 4, "total_steps": 200, "compression": "none"}
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


def real(children: Children) -> list[Event] | None:
    """None when the machine did not let the workers keep their pace, so that there is nothing to compare."""
    sink = Memory(keep=10_000)
    with ServerThread(RunConfig(**RUN, workers=len(SPEEDS)), sinks=[sink]) as server:
        workers = []
        for i, speed in enumerate(SPEEDS):
            command = [sys.executable, str(PROGRAM), server.address, f"w{i}", str(i), str(STEP_S / speed)]
            workers.append(children.start(command, stdin=subprocess.PIPE))
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        paces = [[float(word) for word in worker.stdout.readline().split()] for worker in workers]
        assert [worker.wait(ENOUGH_S) for worker in workers] == [0] * len(workers)
    print(paces)
    return list(sink.events) if all(mean < 1.05 and most < 2.0 for mean, most in paces) else None


def test_the_simulation_tells_what_real_processes_do(children: Children) -> None:
    events = real(children) or real(children) or real(children)
    if events is None:
        pytest.skip("three times the machine did not let the workers keep their pace")
    (rate, staleness, shares), (real_rate, real_staleness, real_shares) = numbers(simulated()), numbers(events)
    assert rate == pytest.approx(sum(SPEEDS) / STEP_S, rel=0.05)
    assert real_rate == pytest.approx(rate, rel=0.15)
    assert real_staleness == pytest.approx(staleness, rel=0.15)
    assert real_shares == pytest.approx(shares, abs=0.05)
