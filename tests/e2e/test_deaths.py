"""A process of a launch dies, or its script fails: who goes on, who ends, and that nothing is left.

Whoever is to go on waits at a gate until the other has died, so that it cannot be through before.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from eventually import ENOUGH_S, eventually
from ports import free
from processes import Program, address_of, results, script

from lightning_async.cli.status import ask

pytestmark = pytest.mark.slow
LOST_S = 600.0  # only a hung one needs it: a worker that hears nothing gives up after 300, and says something else
TWO = {"devices": 2, "strategy": {"local_steps": 2}, "trainer": {"max_steps": 100}}


def wait_until_it_has_left(address: str, rank: int) -> None:
    """Until the server knows that the worker of `rank` is gone."""
    workers = lambda: ask(address, ENOUGH_S)["workers"].values()  # noqa: E731
    eventually(lambda: [w for w in workers() if (w["rank"], w["state"]) == (rank, "gone")], 2 * ENOUGH_S, "its leave")


def test_the_others_train_on_when_a_rank_is_killed(tmp_path: Path) -> None:
    options = {**TWO, "devices": 3, "gate": {"0": 11, "1": 11, "2": 11}}
    with Program(script("train", options), tmp_path) as program:
        program.wait_for_step(1, 10)
        os.kill(program.rank_pid(1), signal.SIGKILL)
        program.open_gate()
        assert program.wait() == 0
        program.wait_until_gone()
    ranks = results(tmp_path)
    assert [rank["rank"] for rank in ranks] == [0, 2]
    assert [len(rank["losses"]) for rank in ranks] == [100, 100]
    assert ranks[0]["after_fit"] == ranks[1]["after_fit"]


def test_everything_goes_when_the_first_rank_is_killed(tmp_path: Path) -> None:
    """Also a child that is not stepping, so that no hook of Lightning's can notice: one step takes an hour."""
    options = {**TWO, "devices": 3, "sleep_s": [0.01, 3600.0, 0.01], "trainer": {"max_steps": 10**6}}
    with Program(script("train", options), tmp_path) as program:
        address = address_of(program)
        program.wait_for_step(1, 1)
        program.wait_for_step(2, 5)
        os.kill(program.rank_pid(0), signal.SIGKILL)
        program.wait_until_gone()
        assert free(address)
        assert "rank 0 has died" in program.output
    assert not results(tmp_path)


def test_an_exception_in_the_first_rank_ends_everything(tmp_path: Path) -> None:
    options = {**TWO, "trainer": {"max_steps": 10**6}, "raise_at": {"rank": 0, "step": 12}, "sleep_s": [0.0, 0.01]}
    with Program(script("train", options), tmp_path) as program:
        address = address_of(program)
        assert program.wait() == 1
        program.wait_until_gone()
        assert free(address)
        assert "RuntimeError: the test's own failure in rank 0" in program.output


def test_an_exception_in_another_rank_leaves_the_rest_training(tmp_path: Path) -> None:
    options = {**TWO, "raise_at": {"rank": 1, "step": 12}, "gate": {"0": 12}}
    with Program(script("train", options), tmp_path) as program:
        program.wait_for("the test's own failure in rank 1")
        wait_until_it_has_left(address_of(program), 1)
        program.open_gate()
        assert program.wait() == 0
        program.wait_until_gone()
        assert "RuntimeError: the test's own failure in rank 1" in program.output
    (zero,) = results(tmp_path)
    assert len(zero["losses"]) == 100
    other = next(worker for worker in zero["report"]["workers"].values() if worker["rank"] == 1)
    assert other["state"] == "gone"
    assert other["steps"] == 12


def test_a_server_that_is_killed_is_started_again_where_it_keeps_its_state(tmp_path: Path) -> None:
    """Nothing that was acknowledged is lost, all ranks go on, and they end with one model."""
    state_dir = str(tmp_path / "state")
    options = {**TWO, "strategy": {"local_steps": 2, "state_dir": state_dir}, "gate": {"0": 20, "1": 20}}
    with Program(script("train", options), tmp_path) as program:
        address = address_of(program)
        program.wait_for_gate(0)
        program.wait_for_gate(1)
        first, before = program.server_pid(), ask(address, ENOUGH_S)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: program.server_pid() != first, 2 * ENOUGH_S, "another server")
        after = eventually(lambda: ask(address, 2 * ENOUGH_S), 2 * ENOUGH_S, "its answer")
        assert after["run_id"] == before["run_id"]
        assert after["steps"] >= before["steps"] > 0
        program.open_gate()
        assert program.wait() == 0
        program.wait_until_gone()
        assert "the embedded server has ended with code -9; starting it again" in program.output
    zero, one = results(tmp_path)
    assert [len(rank["losses"]) for rank in (zero, one)] == [100, 100]
    assert zero["after_fit"] == one["after_fit"]
    assert zero["report"]["steps"] == 200


def test_a_fit_whose_server_has_died_ends_with_what_to_do(tmp_path: Path) -> None:
    options = {**TWO, "trainer": {"max_steps": 10**6}, "sleep_s": [0.02, 0.02]}
    with Program(script("train", options), tmp_path) as program:
        address = address_of(program)
        program.wait_for_step(1, 10)
        os.kill(program.server_pid(), signal.SIGKILL)
        assert program.wait() == 1
        program.wait_until_gone()
        assert free(address)
        assert "the embedded server has ended with code -9" in program.output
        assert "state_dir=" in program.output


@pytest.mark.parametrize("kept", [False, True], ids=["no state_dir", "too many restarts"])
def test_every_worker_is_told_when_no_server_will_come_back(tmp_path: Path, kept: bool) -> None:
    """Rank 0, another rank of its launch and a worker that joined by itself; the last would wait for five minutes."""
    strategy = {"local_steps": 2, **({"state_dir": str(tmp_path / "state")} if kept else {})}
    forever = {"trainer": {"max_steps": 10**6}, "sleep_s": [0.02, 0.02]}
    with Program(script("train", {**TWO, **forever, "strategy": strategy}), tmp_path / "launch") as launch:
        address = address_of(launch)
        guest = {**forever, "strategy": {"server": address, "name": "guest"}}
        with Program(script("train", guest), tmp_path / "guest") as other:
            launch.wait_for_step(1, 10)
            other.wait_for_step(0, 10)
            pid = launch.server_pid()
            if kept:
                os.kill(pid, signal.SIGSTOP)
                (tmp_path / "state" / "journal.db").write_bytes(b"no journal" * 1000)
                (tmp_path / "state" / "journal.db-wal").unlink()  # all of it stands there too
            os.kill(pid, signal.SIGKILL)
            assert other.wait(LOST_S) == 1
            assert launch.wait(LOST_S) == 1
            launch.wait_until_gone()
            assert free(address)
            why = "code 2, as 3 before it" if kept else "code -9, and what it held with it"
            do = "Mend what it says and start again" if kept else "start again, with state_dir="
            for program, rank in ((launch, 0), (launch, 1), (other, 0)):
                (said,) = [event["why"] for event in program.events("failed", rank)]
                assert f"the embedded server has ended with {why}" in said
                assert do in said
                assert program is launch or f"the server at {address} is gone, and the run ends here" in said
    assert not [*results(tmp_path / "launch"), *results(tmp_path / "guest")]
