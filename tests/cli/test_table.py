"""The page that `status` prints."""

from __future__ import annotations

import pytest

from lightning_async.cli.table import plain, size, text
from lightning_async.errors import ProtocolError

WORKER = {
    "state": "ready",
    "accepted": 12,
    "refused": {"stale": 2, "norm": 1},
    "steps": 1200,
    "samples": 9600,
    "staleness": {"0": 9, "1": 2, "7": 1},
    "staleness_mean": 0.75,
    "staleness_p99": 7,
    "bound": 16,
    "acceptance": 0.8,
    "late": False,
    "round_s": 0.51234,
    "round_steps": 16,
    "loss": 3.25,
    "sent_bytes": 5 * 2**20,
    "received_bytes": 100,
    "silent_s": 3725.0,
}
STATE = {
    "run": "demo",
    "line": "<Server v12>",
    "uptime_s": 61.0,
    "parameters": 1_000_000,
    "steps": 1200,
    "ended": "",
    "staleness": {"0": 9, "1": 2, "7": 1},
    "refused_strangers": 4,
    "workers": {"a": WORKER, "bob": {**WORKER, "round_s": None, "loss": None, "staleness": {}, "refused": {"norm": 1}}},
}


def test_it_shows_workers_refusals_staleness_and_bytes() -> None:
    page = text(STATE)
    head, run, *_ = page.splitlines()
    assert head == "<Server v12>"
    assert "1,000,000 parameters" in run
    row = next(line for line in page.splitlines() if line.startswith("a "))
    expected = [
        "a",
        "ready",
        "12",
        "3",
        "80.0",
        "%",
        "-",
        "1,200",
        "9,600",
        "0.512",
        "16",
        "0..7",
        "0.75",
        "7",
        "16",
        "3.25",
        "5.0",
        "MiB",
        "100",
        "B",
        "1:02:05",
    ]
    assert row.split() == expected
    assert "refused: before joining 4, stale 2, norm 2" in page
    bars = [line.split() for line in page.splitlines() if "#" in line]
    assert [(bar[0], bar[2]) for bar in bars] == [("0", "9"), ("1", "2"), ("7", "1")]
    assert len(bars[0][1]) > len(bars[1][1]) > len(bars[2][1])


def test_nothing_that_a_terminal_obeys_comes_through() -> None:
    page = text({**STATE, "workers": {"\x1b[2Jevil\n": WORKER}})
    assert "\x1b" not in page
    assert "?[2Jevil?" in page
    assert plain("näme") == "näme"


def test_it_says_where_the_samples_are_and_what_was_lost() -> None:
    stream = {"length": 1000, "applied": 1500, "leased": 64, "waiting": 0, "free": 8, "aside": 2}
    page = text({**STATE, "streams": {"train-0": {**stream, "returned": {"stale": 512, "lost": 96}}}})
    line = next(line for line in page.splitlines() if line.startswith("samples of"))
    assert line == (
        "samples of train-0: 1.50 passes of 1,000 applied, 64 leased, 8 to be given again, 2 set aside; "
        "cost: stale 512, lost 96"
    )
    assert "samples of" not in text({**STATE, "streams": {"train-0": {"length": 5, "position": 3}}}), (
        "an older server's"
    )


def test_it_says_how_far_transfers_are() -> None:
    ways = {"up": {"bytes": 3 * 2**20, "total": 12 * 2**20}, "down": {"bytes": 0, "total": 2**30}}
    page = text({**STATE, "transfers": {"alice": ways}})
    assert "alice up: 3.0 MiB of 12.0 MiB (25.0 %)\nalice down: 0 B of 1.0 GiB (0.0 %)" in page


def test_an_empty_run() -> None:
    assert "no worker has joined yet" in text({**STATE, "workers": {}, "staleness": {}, "refused_strangers": 0})


@pytest.mark.parametrize("key", ["workers", "staleness", "line"])
def test_a_report_of_something_else_is_an_error(key: str) -> None:
    with pytest.raises(ProtocolError, match="cannot be read"):
        text({name: value for name, value in STATE.items() if name != key})


@pytest.mark.parametrize(("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2**50, "1024.0 TiB")])
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown
