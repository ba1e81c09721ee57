"""Independent scripts join a server of its own: who is let in, with what they begin, and what is said to the others."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from processes import Program, address_of, eventually, free_address, results, script, serve

from lightning_async.cli.status import ask

pytestmark = pytest.mark.slow
END_S = 90.0


def joins(server: Program, folder: Path, strategy: dict[str, Any] | None = None, **options: Any) -> Program:
    given = {"trainer": {"max_steps": 60}, **options, "strategy": {"server": address_of(server), **(strategy or {})}}
    return Program(script("train", given), folder)


def test_two_scripts_train_together_and_the_late_one_begins_with_what_is_published(tmp_path: Path) -> None:
    with serve(tmp_path / "server", local_steps=4, workers=2) as server:
        early = joins(server, tmp_path, label="early-", seed=1, sleep_s=[0.05], trainer={"max_steps": 400})
        with early:
            early.wait_for_step(0, 20)
            with joins(server, tmp_path, label="late-", seed=2) as late:
                assert late.wait(END_S) == 0
            during = ask(address_of(server), 10.0)
            assert early.wait(END_S) == 0
        final = ask(address_of(server), 10.0)
        assert server.process.poll() is None, "a server of its own outlives its workers"
    first, second = ({r["name"]: r for r in results(tmp_path)}[name] for name in ("early-", "late-"))
    assert second["first"] != second["initial"], "it began with its own parameters"
    assert second["first"] != first["initial"], "it began with parameters that nobody had trained"
    assert sum(second["losses"][:4]) < 0.7 * sum(first["losses"][:4])
    assert not set(first["indices"]) & set(second["indices"])
    assert {worker["state"] for worker in during["workers"].values()} == {"ready", "gone"}
    assert final["steps"] == 460
    assert final["live"] == 0


def test_the_line_that_an_embedded_server_prints_joins_it(tmp_path: Path) -> None:
    """Its address, in the environment of a script that names no server."""
    options = {"trainer": {"max_steps": 10**6}, "sleep_s": [0.05], "strategy": {"local_steps": 2}, "label": "owner-"}
    with Program(script("train", options), tmp_path) as owner:
        environment = {"LIGHTNING_ASYNC_SERVER": address_of(owner)}
        owner.wait_for_step(0, 1)
        with Program(script("train", {"trainer": {"max_steps": 20}}), tmp_path, environment) as guest:
            assert guest.wait(END_S) == 0
            assert "join:" not in guest.output, "it has started a server of its own"
        workers = ask(address_of(owner), 10.0)["workers"].values()
        assert sorted(worker["state"] for worker in workers) == ["gone", "ready"]
        owner.process.terminate()
        owner.wait_until_gone(30.0)
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
        for said, other in others.items():
            stack.enter_context(other)
            assert other.wait(END_S) == 1
            last = " ".join(other.output.strip().splitlines()[-3:])
            assert re.search(said, last), last
        before = ask(address_of(server), 10.0)
        eventually(lambda: ask(address_of(server), 10.0)["version"] > before["version"] + 2, 30.0)
        assert before["live"] == 1
        assert resident.process.poll() is None


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    address = free_address()
    command = script("train", {"strategy": {"server": address}})
    with Program(command, tmp_path, {"LIGHTNING_ASYNC_PATIENCE_S": "5"}) as program:
        hint = program.wait_for("no answer from")
        assert f"no answer from {address} yet; trying for 2 s more. Check that the server runs" in hint
        assert program.wait(30.0) == 1
        last = program.wait_for("UnreachableError:")
        assert f"nobody answered at {address} for 5 s. Check that the server runs" in last
        assert "firewall" in last
