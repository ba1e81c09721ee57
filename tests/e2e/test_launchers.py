"""Processes that somebody else has started: torchrun, SLURM; and DataLoader workers that are spawned, not forked."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from eventually import ENOUGH_S, eventually
from ports import free, free_address
from processes import START_S, Program, address_of, results, script, serve

from lightning_async.cli.status import ask

pytestmark = pytest.mark.slow
TWO = {"devices": 2, "val": True, "strategy": {"local_steps": 4}, "then": ["test"]}
TWO["trainer"] = {"max_steps": 24, "val_check_interval": 12}


def both_trained(folder: Path) -> None:
    zero, one = results(folder)
    assert [len(rank["losses"]) for rank in (zero, one)] == [24, 24]
    assert not set(zero["indices"]) & set(one["indices"])
    assert zero["after_fit"] == one["after_fit"]
    assert zero["test"] == one["test"]
    assert zero["report"]["steps"] == one["report"]["steps"] == 48
    assert len(list(folder.rglob("*.ckpt"))) == 1


def torchrun(folder: Path, restarts: int = 0, **options: object) -> Program:
    port = free_address().rpartition(":")[2]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    return Program([*launcher, f"--max-restarts={restarts}", *script("train", options)[1:]], folder)


def test_torchrun(tmp_path: Path) -> None:
    with torchrun(tmp_path, **TWO) as program:
        assert program.wait() == 0
        program.wait_until_gone()
        assert free(address_of(program))
    both_trained(tmp_path)


def test_torchrun_begins_all_ranks_again_when_one_is_killed(tmp_path: Path) -> None:
    """As docs/strategy.md says; the run goes on with them where it was, at a server of its own."""
    with serve(tmp_path / "server", local_steps=2, workers=2) as server:
        address = address_of(server)
        options = {"devices": 2, "strategy": {"server": address}, "trainer": {"max_steps": 40}, "gate": {"1": 11}}
        with torchrun(tmp_path, restarts=1, **options) as program:
            program.wait_for_gate(1)
            version = ask(address, ENOUGH_S)["version"]
            os.kill(program.rank_pid(1), signal.SIGKILL)
            eventually(lambda: len(program.events("begin", 1)) == 2, START_S, "the second life of rank 1")
            program.open_gate()
            assert program.wait() == 0
            program.wait_until_gone()
        pids = [event["pid"] for event in program.events("begin", 0)]
        assert len(set(pids)) == 2, "rank 0, which nobody killed, was begun again too"
        assert ask(address, ENOUGH_S)["version"] >= version + 20 > 20
    ranks = results(tmp_path)
    assert [rank["pid"] for rank in ranks if rank["rank"] == 0] == pids[1:]
    assert [len(rank["losses"]) for rank in ranks] == [40, 40]


def test_torchrun_on_two_nodes(tmp_path: Path) -> None:
    """Two agents that know each other by an address alone, as on two machines, and a server of their own."""
    port = free_address().rpartition(":")[2]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    agent += [f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1", "--max-restarts=0"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve(tmp_path / "server", local_steps=4, workers=2))
        trainer = {"max_steps": 24, "num_nodes": 2}
        options = {"devices": 1, "trainer": trainer, "strategy": {"server": address_of(server)}}
        command = [*agent, *script("train", options)[1:]]
        nodes = [stack.enter_context(Program(command, tmp_path)) for _ in range(2)]
        assert [node.wait() for node in nodes] == [0, 0]
        assert "have not arrived" not in "".join(node.output for node in nodes)
    zero, one = results(tmp_path)
    assert [len(rank["losses"]) for rank in (zero, one)] == [24, 24]
    assert not set(zero["indices"]) & set(one["indices"])
    assert zero["after_fit"] == one["after_fit"]
    groups = {worker["group"] for worker in zero["report"]["workers"].values()}
    assert len(groups) == 1, "they have found each other"


def test_torchrun_with_another_number_of_devices_is_refused(tmp_path: Path) -> None:
    with torchrun(tmp_path, **{**TWO, "devices": 1}) as program:
        assert program.wait() == 1
        program.wait_until_gone()
        assert re.search(r"You set `devices=1`.* does not match the world size \(2\)", program.output)
        assert not program.events("step")


def test_slurm(tmp_path: Path) -> None:
    """Two tasks of one job on one node, as srun starts them."""
    port = free_address().rpartition(":")[2]
    job = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_NNODES": "1", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "localhost"}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with contextlib.ExitStack() as stack:
        tasks = []
        for rank in "01":
            task = {**job, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
            tasks.append(stack.enter_context(Program(script("train", TWO), tmp_path, task)))
        assert [task.wait() for task in tasks] == [0, 0]
    both_trained(tmp_path)


def test_a_shell_inside_a_slurm_job_is_no_task_of_it(tmp_path: Path) -> None:
    """`salloc` and notebooks leave some of SLURM's variables behind; one device then stands for itself."""
    left = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "bash", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}
    with Program(script("train", {"trainer": {"max_steps": 8}}), tmp_path, left) as program:
        assert program.wait() == 0
    (alone,) = results(tmp_path)
    assert len(alone["losses"]) == 8


def test_data_loaders_may_spawn_their_workers(tmp_path: Path) -> None:
    """The samples are drawn in the training process, so nothing of ours has to reach the loader's workers."""
    loader = {"num_workers": 2, "multiprocessing_context": "spawn", "persistent_workers": True}
    options = {"loader": loader, "samples": 128, "trainer": {"max_epochs": 2}, "strategy": {"local_steps": 4}}
    with Program(script("train", options), tmp_path) as program:
        assert program.wait() == 0
        program.wait_until_gone()
    (alone,) = results(tmp_path)
    assert sorted(alone["indices"][:128]) == sorted(alone["indices"][128:]) == list(range(128))
