"""How long the simulator takes for a thousand workers and 10,000 rounds, on one core."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import torch

from lightning_async.simulation import read_scenario, simulate

MOST_S = 60.0


def rows() -> Iterator[dict[str, Any]]:
    """CPU seconds of the whole simulation, making the workers included."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    wall, cpu = time.perf_counter(), time.process_time()
    result = simulate(read_scenario("workers_1000"))
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
    logging.disable(logging.NOTSET)
    yield {
        "bench": "simulation of 1,000 workers",
        "rounds": result.total.accepted,
        "steps": result.total.steps,
        "versions": result.versions,
        "virtual_s": result.seconds,
        "wall_s": wall_s,
        "ours": cpu_s,
        "reference": MOST_S,
        "unit": "CPU seconds",
        "ratio": cpu_s / MOST_S,
        "lower": True,
        "floor": 1.0,
    }
