"""The comparison of outer optimizers: the search for a rate, the environment it makes, and a run of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from examples.experiments import halos
from lightning_async.simulation import read_scenario


@pytest.mark.parametrize("lowest", halos.RATES)
def test_the_search_finds_the_lowest_rate_wherever_it_is(lowest: float) -> None:
    asked: list[float] = []

    def loss(rate: float) -> float:
        asked.append(rate)
        return abs(rate - lowest)

    assert halos.tuned(loss) == lowest
    assert len(set(asked)) < len(halos.RATES), "it looks at the rates on its way only"


def test_fewer_workers_on_wider_lines() -> None:
    shipped = read_scenario("halos")
    made = halos.SETTINGS["nano"].scenario()
    assert [group.speeds for group in made.workers] == [group.speeds[:1] for group in shipped.workers]
    for group, before in zip(made.workers, shipped.workers, strict=True):
        assert (group.trunk is None) == (before.trunk is None)
        if group.trunk is not None and before.trunk is not None:
            assert group.trunk.up_mbps == pytest.approx(2.4 * before.trunk.up_mbps)
            assert group.trunk.down_mbps == pytest.approx(2.4 * before.trunk.down_mbps)


def test_rates_found_on_one_model_serve_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `--tuned-on` the searched runs are of that model, the table of the other; none is made twice."""
    made: list[tuple[str, str, float, int, int]] = []

    def run(model: str, name: str, rate: float, steps: int, seed: int) -> dict[str, object]:
        made.append((model, name, rate, steps, seed))
        row = {"loss": abs(rate - 1.0) + 1, "virtual_s": 10.0, "acceptance": 1.0, "staleness_p99": 0, "sent_bytes": 0}
        return {**row, "utilisation": 1.0, "curve": [(0.0, 0, 5.0), (5.0, steps, 1.0)]}

    monkeypatch.setattr(halos, "run", run)
    monkeypatch.setattr("logging.disable", lambda level: None)
    out = tmp_path / "runs.jsonl"
    options = ["--model", "nano", "--tuned-on", "tiny", "--steps", "64", "--tuning", "16", "--tuning-sync", "32"]
    monkeypatch.setattr(sys, "argv", ["halos", *options, "--seeds", "2", "--only", "sgd", "--out", str(out)])
    halos.main()
    assert {(model, name, steps) for model, name, _, steps, _ in made} == {
        ("tiny", halos.REFERENCE, 32),
        ("tiny", "sgd", 16),
        ("nano", halos.REFERENCE, 64),
        ("nano", "sgd", 64),
    }
    assert all(rate == 1.0 for model, _, rate, _, _ in made if model == "nano")
    assert len(set(made)) == len(made) == len(out.read_text().splitlines())
    first = capsys.readouterr().out.splitlines()
    halos.main()
    assert capsys.readouterr().out.splitlines() == [line for line in first if not line.startswith("{")]
    assert len(set(made)) == len(made), "what is kept is not run again"


def test_a_run_learns_and_is_told() -> None:
    row = halos.run("tiny", "sgd", 0.6, 150, 0)
    assert row["curve"][0][2] > row["loss"] + 0.3
    assert row["acceptance"] == 1.0
    assert json.dumps(row)
