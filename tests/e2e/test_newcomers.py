"""Independent scripts join a server of its own: who is let in, with what they begin, and what is said to the others."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from eventually import ENOUGH_S, eventually
from ports import nobody
from processes import Program, address_of, results, script, serve

from lightning_async.cli.status import ask

pytestmark = pytest.mark.slow


def joins(server: Program, folder: Path, strategy: dict[str, Any] | None = None, **options: Any) -> Program:
    given = {"trainer": {"max_steps": 60}, **options, "strategy": {"server": address_of(server), **(strategy or {})}}
    return Program(script("train", given), folder)


def states(address: str) -> list[str]:
    """Of the workers that have ever been there."""
    return sorted(worker["state"] for worker in ask(address, ENOUGH_S)["workers"].values())


def test_two_scripts_train_together_and_the_late_one_begins_with_what_is_published(tmp_path: Path) -> None:
    with serve(tmp_path / "server", local_steps=4, workers=2) as server:
        early = joins(server, tmp_path, label="early-", seed=1, gate={"0": 120}, trainer={"max_steps": 160})
        with early:
            early.wait_for_gate()
            with joins(server, tmp_path, label="late-", seed=2) as late:
                assert late.wait() == 0
            assert eventually(lambda: states(address_of(server)) == ["gone", "ready"])
            early.open_gate()
            assert early.wait() == 0
        assert eventually(lambda: states(address_of(server)) == ["gone", "gone"])
        final = ask(address_of(server), ENOUGH_S)
        assert server.process.poll() is None, "a server of its own outlives its workers"
    first, second = ({r["name"]: r for r in results(tmp_path)}[name] for name in ("early-", "late-"))
    assert second["first"] != second["initial"], "it began with its own parameters"
    assert second["first"] != first["initial"], "it began with parameters that nobody had trained"
    assert sum(second["losses"][:4]) < 0.7 * sum(first["losses"][:4])
    assert not set(first["indices"]) & set(second["indices"])
    assert final["steps"] == 220


def test_the_line_that_an_embedded_server_prints_joins_it(tmp_path: Path) -> None:
    """Its address, in the environment of a script that names no server."""
    options = {"trainer": {"max_steps": 10**6}, "sleep_s": [0.05], "strategy": {"local_steps": 2}, "label": "owner-"}
    with Program(script("train", options), tmp_path) as owner:
        environment = {"LIGHTNING_ASYNC_SERVER": address_of(owner)}
        owner.wait_for_step(0, 1)
        with Program(script("train", {"trainer": {"max_steps": 20}}), tmp_path, environment) as guest:
            assert guest.wait() == 0
            assert "join:" not in guest.output, "it has started a server of its own"
        assert eventually(lambda: states(address_of(owner)) == ["gone", "ready"])
        owner.process.terminate()
        owner.wait_until_gone()
    guest_result = next(result for result in results(tmp_path) if not result["name"])
    assert guest_result["first"] != guest_result["initial"]
    assert len(guest_result["losses"]) == 20


def test_who_does_not_fit_is_refused_and_the_server_unharmed(tmp_path: Path) -> None:
    with serve(tmp_path / "server", local_steps=4) as server, contextlib.ExitStack() as stack:
        endless = {"sleep_s": [0.05], "trainer": {"max_steps": 10**6}}
        resident = stack.enter_context(joins(server, tmp_path, {"name": "taken"}, **endless))
        resident.wait_for_step(0, 8)
        others = {
            r"'layers.0.weight'.*\(32, 8\).*\(16, 8\)": joins(server, tmp_path / "model", width=32),
            r"local_steps: this worker was given 2, the run has 4": joins(
                server, tmp_path / "args", {"local_steps": 2}
            ),
            r"a live worker is called 'taken'": joins(server, tmp_path / "name", {"name": "taken"}),
        }
        for other in others.values():
            stack.enter_context(other)
        for said, other in others.items():
            assert other.wait() == 1
            last = " ".join(other.output.strip().splitlines()[-3:])
            assert re.search(said, last), last
        before = ask(address_of(server), ENOUGH_S)
        eventually(lambda: ask(address_of(server), ENOUGH_S)["version"] > before["version"] + 2)
        assert before["live"] == 1
        assert resident.process.poll() is None


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with nobody() as address:
        command = script("train", {"strategy": {"server": address}})
        with Program(command, tmp_path, {"LIGHTNING_ASYNC_PATIENCE_S": "5"}) as program:
            hint = program.wait_for("no answer from")
            more = re.search(f"no answer from {address} yet; trying for (.*) s more. Check that the server runs", hint)
            assert more is not None
            assert int(more[1]) <= 2, "of five, after three"
            assert program.wait() == 1
            last = program.wait_for("UnreachableError:")
            waited = re.search(f"nobody answered at {address} for (.*) s. Check that the server runs", last)
            assert waited is not None
            assert int(waited[1]) >= 5
            assert "firewall" in last
