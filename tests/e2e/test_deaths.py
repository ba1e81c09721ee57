"""A process of a launch dies, or its script fails: who goes on, who ends, and that nothing is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from processes import Program, address_of, free, results, script

pytestmark = pytest.mark.slow
TWO = {"devices": 2, "strategy": {"local_steps": 2}, "trainer": {"max_steps": 100}}
GONE_S = 15.0  # nothing here should take more than five seconds on an idle machine


def test_the_others_train_on_when_a_rank_is_killed(tmp_path: Path) -> None:
    options = {**TWO, "devices": 3, "sleep_s": [0.02, 0.02, 0.02]}
    with Program(script("train", options), tmp_path) as program:
        program.wait_for_step(1, 10)
        os.kill(program.rank_pid(1), signal.SIGKILL)
        assert program.wait(60.0) == 0
        program.wait_until_gone(GONE_S)
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
        program.wait_until_gone(GONE_S)
        assert free(address)
        assert "rank 0 has died" in program.output
    assert not results(tmp_path)


def test_an_exception_in_the_first_rank_ends_everything(tmp_path: Path) -> None:
    options = {**TWO, "trainer": {"max_steps": 10**6}, "raise_at": {"rank": 0, "step": 12}, "sleep_s": [0.0, 0.01]}
    with Program(script("train", options), tmp_path) as program:
        address = address_of(program)
        assert program.wait(90.0) == 1
        program.wait_until_gone(GONE_S)
        assert free(address)
        assert "RuntimeError: the test's own failure in rank 0" in program.output


def test_an_exception_in_another_rank_leaves_the_rest_training(tmp_path: Path) -> None:
    options = {**TWO, "raise_at": {"rank": 1, "step": 12}, "sleep_s": [0.02, 0.0]}
    with Program(script("train", options), tmp_path) as program:
        assert program.wait(90.0) == 0
        program.wait_until_gone(GONE_S)
        assert "RuntimeError: the test's own failure in rank 1" in program.output
    (zero,) = results(tmp_path)
    assert len(zero["losses"]) == 100
    other = next(worker for worker in zero["report"]["workers"].values() if worker["rank"] == 1)
    assert other["state"] == "gone"
    assert other["steps"] == 12


def test_a_fit_whose_server_has_died_ends_with_what_to_do(tmp_path: Path) -> None:
    options = {**TWO, "trainer": {"max_steps": 10**6}, "sleep_s": [0.02, 0.02]}
    with Program(script("train", options), tmp_path) as program:
        address = address_of(program)
        program.wait_for_step(1, 10)
        os.kill(program.server_pid(), signal.SIGKILL)
        assert program.wait(60.0) == 1
        program.wait_until_gone(GONE_S)
        assert free(address)
        assert "the embedded server has ended with code -9" in program.output
        assert "state_dir=" in program.output
