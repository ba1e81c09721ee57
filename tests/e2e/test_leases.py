"""Three real workers and one pass: one is killed with leases in its hands, one comes late, and each sample is applied
once. The weights of the model say so, which count."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from eventually import eventually
from processes import START_S, Program, script

from lightning_async.config import RunConfig
from lightning_async.server import ServerThread

pytestmark = pytest.mark.slow
SAMPLES = 400
CONFIG = RunConfig(local_steps=3, weight="constant", beat_s=0.5, patience_s=6.0, workers=3)


def worker(server: ServerThread, folder: Path, name: str, **more: Any) -> Program:
    options = {"server": server.address, "name": name, "samples": SAMPLES, "batch": 4, **more}
    return Program(script("counting", options), folder)


def streams(server: ServerThread) -> dict[str, Any]:
    return {name: ledger.state() for name, ledger in server.coordinator.run.streams.items()}


def a_pass_with_a_death(tmp_path: Path, server: ServerThread) -> list[float]:
    """How often each sample was applied."""
    with (
        worker(server, tmp_path, "a", hold=5, processes=1) as a,
        worker(server, tmp_path, "b", hold=2, batch=6) as b,
    ):
        a.wait_for("holding")
        b.wait_for("holding")
        with worker(server, tmp_path, "c", hold=1) as c:
            c.wait_for("holding")
            held = streams(server)["train-0"]["held"]
            assert all(held[name] > 0 for name in "abc")
            (tmp_path / "go-b").touch()
            eventually(lambda: streams(server)["train-0"]["free"] == 0 and fresh(server) == 0, START_S, "all is taken")
            a.process.send_signal(signal.SIGKILL)
            (tmp_path / "go-c").touch()
            assert b.wait() == c.wait() == 0
        a.wait()
    ledger = streams(server)["train-0"]
    back = sum(
        stop - start for why, name, _, start, stop in ledger["cost"] if name == "a" and why in ("lost", "overdue")
    )
    assert back >= held["a"] - 4 * 3, "what it held came back when it was silent, or when others had nothing else"
    store = server.coordinator.run.store
    assert store is not None
    counts: list[float] = store.published.tolist()
    return counts


def fresh(server: ServerThread) -> int:
    ledger = streams(server)["train-0"]
    return max(0, SAMPLES - int(ledger["position"]))


def test_each_sample_is_applied_once_though_a_worker_is_killed_and_one_comes_late(tmp_path: Path) -> None:
    with ServerThread(CONFIG) as server:
        counts = a_pass_with_a_death(tmp_path, server)
        ledger = streams(server)["train-0"]
    assert counts == [1.0] * SAMPLES
    assert (ledger["passes"], ledger["applied"], ledger["leased"], ledger["free"]) == (1, SAMPLES, 0, 0)
