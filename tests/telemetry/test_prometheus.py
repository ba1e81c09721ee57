"""The Prometheus file: what stands in it, when it is written, and that no name can break it."""

from __future__ import annotations

import re
from pathlib import Path

from lightning_async.telemetry import Event, Prometheus, events
from lightning_async.telemetry.prometheus import EVERY_S, MOST_SERIES

LINE = re.compile(r'^lightning_async_\w+(\{\w+="(?:[^"\\\n]|\\.)*"\})? -?[0-9.e+-]+$')


def accepted(worker: str, time_s: float = 1.0) -> Event:
    return events.Accepted(time_s=time_s, worker=worker, seq=1, staleness=3, steps=4, samples=8, round_s=0.5, loss=0.25)


def test_events_become_metrics_in_the_text_form(tmp_path: Path) -> None:
    sink = Prometheus(tmp_path / "run" / "metrics.prom")
    told: list[Event] = [
        events.Joined(time_s=0.0, worker="a", again=False),
        events.Joined(time_s=0.0, worker="b", again=False),
        events.Left(time_s=0.0, worker="b", why="bye"),
        accepted("a"),
        accepted("a"),
        events.Refused(time_s=1.0, worker="a", reason="norm", detail="x"),
        events.Dropped(time_s=1.0, worker="a", seq=1, why="x"),
        events.Stepped(time_s=1.0, version=7, workers=("a",), staleness=(0,), steps_total=32),
        events.Judged(
            time_s=1.0, version=7, workers=("a",), influence=(1.0,), distance_z=(0.0,), cosine=(1.0,), score=(0.9,)
        ),
        events.Traffic(time_s=1.0, worker="a", sent_bytes=70, received_bytes=900),
        events.Traffic(time_s=1.0, worker="a", sent_bytes=80, received_bytes=1000),
        events.Quarantined(time_s=1.0, worker="a", score=0.1, until=9),
    ]
    for event in told:
        sink.write(event)
    text = (tmp_path / "run" / "metrics.prom").read_text()
    assert text == sink.text()
    for line in (
        "lightning_async_version 7",
        "lightning_async_steps_total 32",
        "lightning_async_members 1",
        'lightning_async_accepted_total{worker="a"} 2',
        'lightning_async_refused_total{reason="norm"} 1',
        'lightning_async_dropped_total{worker="a"} 1',
        "lightning_async_staleness_sum 6",
        'lightning_async_loss{worker="a"} 0.25',
        'lightning_async_score{worker="a"} 0.9',
        'lightning_async_quarantined{worker="a"} 1',
        'lightning_async_sent_bytes_total{worker="a"} 80',
        'lightning_async_received_bytes_total{worker="a"} 1000',
        "# TYPE lightning_async_accepted_total counter",
    ):
        assert line in text.splitlines()
    assert all(line.startswith("# ") or LINE.match(line) for line in text.splitlines())


def test_too_few_workers_are_on_the_metrics_at_once_and_off_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    sink = Prometheus(path)
    sink.write(accepted("a", 10.0))
    sink.write(events.Waiting(time_s=10.1, have=3, need=5, why="krum(f=1) needs 5"))
    assert "lightning_async_waiting_for_workers 1" in path.read_text().splitlines()
    assert "lightning_async_workers_needed 5" in path.read_text().splitlines()
    sink.write(events.Enough(time_s=10.2, have=5, need=5))
    assert "lightning_async_waiting_for_workers 0" in path.read_text().splitlines()


def test_it_is_not_written_for_every_update_and_is_whole_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    sink = Prometheus(path)
    for i in range(100):
        sink.write(accepted("a", 100.0 + i * EVERY_S / 100))
    assert 'accepted_total{worker="a"} 1\n' in path.read_text()
    sink.write(accepted("a", 100.0 + EVERY_S))
    assert 'accepted_total{worker="a"} 101\n' in path.read_text()
    sink.write(accepted("a", 100.0 + EVERY_S))
    sink.close()
    assert 'accepted_total{worker="a"} 102\n' in path.read_text()


def test_names_cannot_break_the_format_or_fill_the_memory(tmp_path: Path) -> None:
    sink = Prometheus(tmp_path / "metrics.prom")
    sink.write(accepted('evil"} 1\nup 0\\'))
    lines = sink.text().splitlines()
    assert any(line.startswith('lightning_async_accepted_total{worker="evil\\"} 1\\nup 0\\\\"}') for line in lines)
    assert not any(line.startswith("up") for line in lines)
    for i in range(MOST_SERIES + 100):
        sink._take(accepted(f"w{i}"))
    assert len(sink.text().splitlines()) < MOST_SERIES + 50
