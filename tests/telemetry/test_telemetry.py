"""Running statistics and sinks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_async.telemetry import Ewma, Histogram, JsonLines, Memory, events


def test_the_first_value_counts_whole() -> None:
    assert Ewma().value is None
    assert Ewma().after(4.0).value == 4.0
    assert Ewma(weight=0.25).after(4.0).after(8.0).value == pytest.approx(5.0)


@given(st.lists(st.integers(0, 20), min_size=1), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
def test_quantiles_are_those_of_the_sorted_values(values: list[int], q: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    found = histogram.quantile(q)
    assert sum(value <= found for value in values) >= q * len(values)
    assert all(sum(value <= lower for value in values) < q * len(values) for lower in set(values) if lower < found)
    assert sum(histogram.as_dict().values()) == len(values)


def test_an_empty_histogram() -> None:
    assert Histogram().quantile(0.5) == 0
    assert Histogram().as_dict() == {}


def test_memory_keeps_the_newest() -> None:
    sink = Memory(keep=3)
    for i in range(5):
        sink.write(events.Left(time_s=float(i), worker="a", why="x"))
    assert [event.time_s for event in sink.events] == [2.0, 3.0, 4.0]


def test_lines_are_appended_and_whole_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "events.jsonl"
    for i in range(2):
        sink = JsonLines(path)
        sink.write(events.Joined(time_s=float(i), worker="ä", again=False))
        assert len(path.read_text(encoding="utf-8").splitlines()) == i + 1, "before it is closed"
        sink.close()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows[1] == {"event": "Joined", "time_s": 1.0, "worker": "ä", "again": False}
