"""Launch groups have names of their own, also where launchers use theirs again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import lightning.pytorch  # noqa: F401  sets an environment variable on its first import
import pytest
from torch.distributed import TCPStore

from lightning_async.errors import NetworkError
from lightning_async.strategy import launch, naming
from lightning_async.strategy.naming import group_of

OURS = ("LIGHTNING_ASYNC_", "TORCHELASTIC_", "SLURM_", "MASTER_", "LSB_")


class Environment:
    main_port = 29500


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """The first store of a process opens a pipe that stays."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    TCPStore("127.0.0.1", store.port, is_master=False).set("key", "value")


@pytest.fixture(autouse=True)
def _nobody_launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.setattr(launch, "_launched", None)
    naming.agreed.cache_clear()
    yield
    naming.agreed.cache_clear()


def torchrun(monkeypatch: pytest.MonkeyPatch, port: int, rank: int, restart: int = 0) -> str:
    """The name in a process with that rank of two, on nodes of their own."""
    told = {"TORCHELASTIC_RUN_ID": "100", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": str(rank)}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": str(restart)}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    naming.agreed.cache_clear()  # each is a process of its own
    return group_of(Environment(), 2)


def test_ranks_of_one_torchrun_have_one_name_and_the_next_torchrun_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the same id, address and port, as a script that is run twice has them."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    names = [[torchrun(monkeypatch, store.port, rank, restart) for rank in (0, 1)] for restart in (0, 1)]
    for restart in (0, 1):
        store.delete_key(f"lightning_async/100-127.0.0.1-{store.port}-{restart}")  # the store of another torchrun
    names += [[torchrun(monkeypatch, store.port, rank) for rank in (0, 1)]]
    assert [len(set(pair)) for pair in names] == [1, 1, 1]
    assert len({pair[0] for pair in names}) == 3


def test_a_rank_that_comes_first_waits_for_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    found: list[str] = []
    first = threading.Thread(target=lambda: found.append(torchrun(monkeypatch, store.port, 1)), daemon=True)
    first.start()
    first.join(0.2)
    assert not found
    store.set("lightning_async/100-127.0.0.1-" + f"{store.port}-0", "abc")
    first.join()
    assert found == [f"torchrun-100-127.0.0.1-{store.port}-0-abc"]


def test_a_store_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "AGREE_S", 0.3)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(NetworkError, match=r"torchrun's store at 127.0.0.1:\d+ has not said.*Check that all its nodes"):
        torchrun(monkeypatch, store.port, 1)


def test_steps_and_restarts_of_a_slurm_job_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for step, restarts in (("0", None), ("1", None), ("0", "1")):
        told: dict[str, Any] = {"SLURM_JOB_ID": "4242", "SLURM_STEP_ID": step, "SLURM_RESTART_COUNT": restarts}
        for name, value in told.items():
            monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
        assert group_of(Environment(), 2) == group_of(Environment(), 2)
        names.add(group_of(Environment(), 2))
    assert len(names) == 3
    assert group_of(Environment(), 1) != group_of(Environment(), 1), "one that stands for itself is a group of its own"


def test_other_launchers_children_have_their_parent_in_common() -> None:
    name = group_of(Environment(), 2)
    assert name == group_of(Environment(), 2)
    assert name.endswith(f"-29500-{os.getppid()}")
