"""SIGTERM and Ctrl+C, in the moments when they are hardest to answer.

The answer takes a second or two on a machine that is free. What a wrong one would wait for takes an hour here, so the
bounds can be so wide that no busy machine reaches them.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from ports import free, nobody
from processes import Program, address_of, script

pytestmark = pytest.mark.slow
ENDLESS = {"devices": 2, "strategy": {"local_steps": 2}, "trainer": {"max_steps": 10**6}, "sleep_s": [0.01, 0.01]}
ENDLESS |= {"goodbye_s": 3600.0}
ANSWER_S = 30.0  # from the signal to the end of rank 0's program; then Python takes thousands of modules down


def answered(program: Program, signalled_at: float) -> float:
    """Seconds from the signal until rank 0's program was over."""
    took = float(program.events("exit", 0)[0]["at"]) - signalled_at
    print(f"answered in {took:.2f} s")
    return took


def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    with Program(script("train", ENDLESS), tmp_path) as program:
        address = address_of(program)
        program.wait_for_step(1, 10)
        at = time.time()
        program.interrupt()
        program.wait_until_gone()
        assert program.wait() == 1
        assert answered(program, at) < ANSWER_S
        assert free(address)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_hung_server_does_not_hold_anybody(tmp_path: Path, number: int) -> None:
    """The server stops answering (SIGSTOP), the workers soon wait for their receipts; then comes the signal."""
    with Program(script("train", {**ENDLESS, "val": True}), tmp_path) as program:
        address = address_of(program)
        program.wait_for_step(1, 10)
        server = program.server_pid()
        os.kill(server, signal.SIGSTOP)
        at = time.time()
        if number == signal.SIGINT:
            program.interrupt()
        else:
            program.process.send_signal(number)
        program.wait_until_gone()
        assert free(address)
        assert answered(program, at) < ANSWER_S


def test_sigterm_ends_everything(tmp_path: Path) -> None:
    with Program(script("train", ENDLESS), tmp_path) as program:
        address = address_of(program)
        program.wait_for_step(1, 10)
        at = time.time()
        program.process.send_signal(signal.SIGTERM)
        program.wait_until_gone()
        assert program.wait() in (0, 143)
        assert answered(program, at) < ANSWER_S  # it waits for its children, which end likewise
        assert free(address)


def waiting_for(address: str) -> list[str]:
    return script("train", {"strategy": {"server": address}, "trainer": {"max_steps": 10}})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_wait_for_a_server_can_be_ended(tmp_path: Path, number: int) -> None:
    patience = {"LIGHTNING_ASYNC_PATIENCE_S": "3600"}
    with nobody() as address, Program(waiting_for(address), tmp_path, patience) as program:
        program.wait_for("no answer from")
        at = time.time()
        program.process.send_signal(number)
        program.wait_until_gone()
        assert program.wait() != 0
        if number == signal.SIGINT:  # before training Lightning leaves SIGTERM to the system
            assert answered(program, at) < ANSWER_S
