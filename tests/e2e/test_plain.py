"""AsyncOptimizer in processes of its own, and through a network that breaks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from eventually import ENOUGH_S, eventually
from ports import free_address
from processes import Program, address_of, results, script, serve
from tunnel import Tunnel

from lightning_async.cli.status import ask

pytestmark = pytest.mark.slow


def plain(folder: Path, server: str, steps: int, seed: int, sleep_s: float = 0.0, **more: object) -> Program:
    return Program(
        script("plain", {"server": server, "steps": steps, "seed": seed, "sleep_s": sleep_s, **more}), folder
    )


def test_two_plain_loops_train_one_model(tmp_path: Path) -> None:
    with serve(tmp_path / "server", local_steps=4) as server:
        address = address_of(server)
        with plain(tmp_path, address, 120, 1, 0.01) as one, plain(tmp_path, address, 120, 2, 0.01) as two:
            assert one.wait() == 0
            assert two.wait() == 0
        assert eventually(lambda: ask(address, ENOUGH_S)["live"] == 0)
        state = ask(address, ENOUGH_S)
    first, second = results(tmp_path)
    assert state["steps"] == 240
    assert [worker["steps"] for worker in state["workers"].values()] == [120, 120]
    for result in (first, second):
        assert sum(result["losses"][-10:]) < 0.3 * sum(result["losses"][:10]) or result["first"] != result["initial"]
        assert result["losses"][-1] < 1.0
    assert (first["first"] == first["initial"]) + (second["first"] == second["initial"]) <= 1


def test_a_cut_line_loses_nothing(tmp_path: Path) -> None:
    """Nothing passes, then the line is broken for good; training goes on, and every update counts once.

    The line stands still while the worker waits in the middle of its 26th round. It sends that one, and makes the first
    step of the next while what it has sent is on its way.
    """
    options = {"name": "w", "gate": 51}
    with serve(tmp_path / "server", local_steps=2, beat_s=0.5) as server, Tunnel(address_of(server)) as tunnel:
        with plain(tmp_path, tunnel.url, 400, 1, **options) as worker:
            worker.wait_for_gate()
            eventually(lambda: accepted(server) == 25)
            tunnel.hold()
            held_bytes = tunnel.held_bytes
            worker.open_gate()
            worker.wait_for_step(0, 53)
            eventually(lambda: tunnel.held_bytes > held_bytes + 4 * 161, what="the update in the tunnel")
            assert accepted(server) == 25, "the update has passed"
            tunnel.cut()
            tunnel.release()
            assert worker.wait() == 0
            output = worker.output
        state = ask(address_of(server), ENOUGH_S)
    assert tunnel.connections >= 2, "the line was not dialled again"
    assert "joining again" in output
    assert state["workers"]["w"]["steps"] == 400
    assert state["workers"]["w"]["accepted"] == 200 == state["version"]
    (result,) = results(tmp_path)
    assert result["losses"][-1] < 0.1


def accepted(server: Program) -> int:
    """Updates of worker w that the server has accepted."""
    return int(ask(address_of(server), ENOUGH_S)["workers"]["w"]["accepted"])


def test_the_bytes_of_the_report_are_those_on_the_line(tmp_path: Path) -> None:
    with serve(tmp_path / "server", local_steps=1) as server, Tunnel(address_of(server)) as tunnel:
        with plain(tmp_path, tunnel.url, 100, 1, name="w", goodbye_s=ENOUGH_S) as worker:
            assert worker.wait() == 0
        state = ask(address_of(server), ENOUGH_S)["workers"]["w"]
    for counted, passed in ((state["sent_bytes"], tunnel.up_bytes), (state["received_bytes"], tunnel.down_bytes)):
        assert counted <= passed
        assert passed - counted < 1000, "the ZeroMQ handshake, the goodbye and its answer"
        assert counted > 100 * 4 * 161


def test_a_server_that_was_killed_and_has_lost_the_run(tmp_path: Path) -> None:
    address, options = free_address(), {"local_steps": 2, "beat_s": 0.5}
    with serve(tmp_path / "server", address, **options) as server:
        address_of(server)
        with plain(tmp_path, address, 10**6, 1, 0.02) as worker:
            worker.wait_for_step(0, 20)
            server.process.kill()
            server.process.wait()
            with serve(tmp_path / "second", address, **options) as second:
                address_of(second)
                assert worker.wait() == 1
                last = worker.output.strip().splitlines()[-1]
                assert "the server was started anew without the state of run" in last
                assert "Start the workers again, or the server with the state_dir of that run" in last


def test_nothing_is_imported_that_a_server_does_not_need(tmp_path: Path) -> None:
    code = "import sys, lightning_async.cli.hosting; print('@@', [m for m in sys.modules if 'lightning.' in m])"
    with Program([sys.executable, "-c", code], tmp_path) as program:
        assert program.wait() == 0
        assert "@@ []" in program.output
