"""`lightning-async simulate` and `plan`, through the program's own door."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_async.cli.main import main
from lightning_async.simulation import shipped

SMALL = """
task: synthetic()
run: {local_steps: 4, total_steps: 200}
step_s: 1.0
target_loss: 0.1
workers:
  - {name: fast, speed: 2.0}
  - {name: slow, speed: 0.5, link: {up_mbps: 10, latency_ms: 50}}
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return str(path)


def test_the_page_has_what_was_promised(small, capsys):
    assert main(["simulate", small]) == 0
    page = capsys.readouterr().out
    assert page.startswith("small, seed 0: ")
    assert "final loss 0." in page
    assert "loss 0.1 reached after" in page
    for word in ("utilisation", "acceptance", "staleness", "p99", "up", "down", "fast", "slow", "all"):
        assert word in page


def test_json_has_everything_and_settings_reach_it(small, capsys):
    assert main(["simulate", small, "--json", "--seed", "5", "--set", "run.local_steps=2", "--set", "step_s=2.0"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["seed"] == 5
    assert result["total"]["accepted"] == 100
    assert result["seconds"] == pytest.approx(200 * 2.0 / 2.5, rel=0.05)
    assert {worker["name"] for worker in result["workers"]} == {"fast", "slow"}
    assert result["curve"][0] == {"time_s": pytest.approx(0.0, abs=1.0), "steps": 0, "version": 0, "loss": 0.5}


def test_without_a_scenario_those_that_are_shipped_are_listed(capsys):
    assert main(["simulate"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == shipped()


def test_a_wrong_key_is_the_callers_error(small, capsys):
    assert main(["simulate", small, "--set", "workers.0.lnk=1"]) == 2
    assert "workers.0: got the key lnk, expected some of:" in capsys.readouterr().err


def test_plots_are_written(small, tmp_path):
    """In its own process, because matplotlib keeps its fonts open."""
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "lightning_async", "simulate", small, "--plots", str(tmp_path / "plots")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    pictures = sorted((tmp_path / "plots").iterdir())
    assert [path.name for path in pictures] == ["small-loss.png", "small-workers.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000 for path in pictures)
    assert told.splitlines()[-2:] == [str(path) for path in pictures]


def test_a_plan_ends_with_a_line_to_copy(capsys):
    line = ["--up-mbps", "20", "--down-mbps", "100", "--latency-ms", "20"]
    assert main(["plan", "--parameters", "124e6", "--speeds", "2", "1", "0.3", "--step-s", "1", *line]) == 0
    page = capsys.readouterr().out
    assert "\nAsyncWANStrategy(compression='topk', local_steps=" in page
    assert main(["plan", "wan_bandwidth", "--target", "0.9", "--set", "workers.0.link.up_mbps=100"]) == 0
    assert "compression='none', local_steps=" in capsys.readouterr().out
