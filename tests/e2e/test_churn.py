"""Workers that are killed, stopped and torn from their line, and hundreds that come and hang up, against one server.

The run ends, each sample is applied once, the books balance, and the server holds no more memory and files than before.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import IO, Any

import pytest
from children import Children
from eventually import eventually
from processes import END_S, address_of, script, serve

from lightning_async.cli.status import stored
from lightning_async.server.history import read_run

pytestmark = pytest.mark.slow
SAMPLES, PASSES, PLACES = 50_000, 2, 4
WARM, GUESTS = 60, 400  # joins: a server that kept a guest's parameters would hold 68 MB more in the end
STEPS_BEFORE_QUIET = 300  # of the 400 that the passes take when nothing is lost
SLACK_BYTES, SLACK_FILES = 30e6, 20
CROWD = {
    "samples": SAMPLES, "batch": 250, "passes": PASSES, "steps": STEPS_BEFORE_QUIET, "places": PLACES, "deeds": 24,
    "guests": GUESTS, "warm": WARM, "seed": 4,
}  # fmt: skip


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def heard(stream: IO[str] | None) -> dict[str, Any]:
    assert stream is not None
    line = stream.readline()
    assert line, "the crowd has ended"
    return dict(json.loads(line))


def tell(stream: IO[str] | None) -> None:
    assert stream is not None
    stream.write("\n")
    stream.flush()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_server_is_as_large_after_hundreds_of_joins_and_deaths_and_books_each_sample_once(
    tmp_path: Path, children: Children
) -> None:
    options = {"local_steps": 2, "weight": "constant", "staleness": "unbounded", "epochs": PASSES, "workers": PLACES}
    with serve(tmp_path, state_dir=tmp_path / "state", beat_s=0.5, patience_s=3.0, **options) as server:
        command = script("crowd", {**CROWD, "server": address_of(server)})
        crowd = children.start(command, stdin=-1, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert heard(crowd.stdout)["is"] == "warm"
        bytes_then, files_then = resident_bytes(server.pid), files(server.pid)
        tell(crowd.stdin)
        suffered = heard(crowd.stdout)
        assert suffered == {"is": "quiet", "guests": GUESTS, "kill": 8, "stop": 8, "tear": 8}
        eventually(lambda: files(server.pid) < files_then + SLACK_FILES, what="descriptors are given back")
        grown = lambda: resident_bytes(server.pid) - bytes_then  # noqa: E731
        eventually(lambda: grown() < SLACK_BYTES, what=f"it is {grown() / 1e6:.0f} MB larger than once it was warm")
        tell(crowd.stdin)
        assert server.wait(2 * END_S) == 0, "the run is over"
        assert crowd.stdin is not None
        crowd.stdin.close()
        assert heard(crowd.stdout)["lost"] > 0, "receipts"
    assert balanced(stored(tmp_path / "state")["streams"]["train"])
    store = read_run(tmp_path / "state").run.store
    assert store is not None
    assert store.published.tolist() == [float(PASSES)] * SAMPLES, "each sample, once in each pass"


def balanced(ledger: dict[str, Any]) -> bool:
    wanted = {"passes": PASSES, "applied": PASSES * SAMPLES, "leased": 0, "waiting": 0, "free": 0, "aside": 0}
    return {name: ledger[name] for name in wanted} == wanted
