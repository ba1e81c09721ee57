"""What the demo says at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from examples.gpt2 import demo
from examples.gpt2.train import Outcome


def worker(rank: int, **changes: Any) -> dict[str, Any]:
    return {
        "group": "g",
        "rank": rank,
        "accepted": 4,
        "refused": {},
        "steps": 64,
        "samples": 512,
        "sent_bytes": 2_500_000,
        "received_bytes": 7_100_000,
        "seconds": 32.0,
        **changes,
    }


REPORT = {
    "version": 8,
    "uptime_s": 40.0,
    "steps": 128,
    "staleness": {"0": 6, "10": 1, "2": 12},
    "workers": {"b": worker(1, refused={"stale": 2, "norm": 1}), "a": worker(0)},
}


def test_table_has_a_line_per_worker_in_the_order_of_ranks() -> None:
    lines = demo.table(REPORT["workers"], block=128)
    assert [line.split()[0] for line in lines] == ["worker", "a", "b"]
    assert lines[1].split() == ["a", "64", "2048", "4", "0", "2.5", "MB", "7.1", "MB"]


def test_refusals_are_added_up() -> None:
    assert demo.table({"b": REPORT["workers"]["b"]}, block=128)[1].split()[4] == "3"


def test_histogram_is_ordered_by_number_and_scaled_to_the_longest() -> None:
    lines = demo.histogram(REPORT["staleness"])
    assert [line.split()[0] for line in lines] == ["0", "2", "10"]
    assert lines[1].count("#") == demo.WIDTH
    assert lines[0].count("#") == demo.WIDTH // 2


def test_histogram_of_nothing_is_empty() -> None:
    assert demo.histogram({}) == []


def test_summary_says_losses_steps_and_where_the_picture_is() -> None:
    text = "\n".join(demo.summary(Outcome(7.6, 4.2, 64, REPORT), 128, Path("loss.png")))
    assert "7.6000 before, 4.2000 after" in text
    assert "128 local steps accepted" in text
    assert "loss.png" in text
