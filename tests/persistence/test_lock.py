"""A state_dir is one server's at a time, and free again however that one ends."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest
from children import Children

from lightning_async.cli.hosting import host
from lightning_async.cli.place import Place
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.persistence import Lock, LockedError

HOLD = "import sys, time; from pathlib import Path; from lightning_async.persistence import Lock\n"
HOLD += "lock = Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(3600)"


def test_a_second_one_is_told_whose_it_is(tmp_path: Path) -> None:
    with closing(Lock(tmp_path)) as first:
        with pytest.raises(LockedError, match=rf"process {os.getpid()} on {socket.gethostname()}\).*another state_dir"):
            Lock(tmp_path)
        first.close()
        Lock(tmp_path).close()


def test_it_goes_with_a_process_that_is_killed(tmp_path: Path, children: Children) -> None:
    holder = children.start([sys.executable, "-c", HOLD, str(tmp_path)])
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"process {holder.pid} on"):
        Lock(tmp_path)
    holder.kill()
    holder.wait()
    Lock(tmp_path).close()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with closing(Lock(tmp_path)):
        assert "cannot be locked (Operation not supported): see to it that no second server uses it" in caplog.text


def test_two_servers_do_not_share_a_state_dir(tmp_path: Path) -> None:
    address, state_dir = "memory://lock-{}", str(tmp_path / "state")
    with host(RunConfig(), Place(address=address.format(1), state_dir=state_dir)):
        with pytest.raises(LockedError, match="another server keeps its run in"):
            host(RunConfig(), Place(address=address.format(2), state_dir=state_dir))
        with host(RunConfig(), Place(address=address.format(3), state_dir=str(tmp_path / "other"))):
            pass
    with host(RunConfig(), Place(address=address.format(4), state_dir=state_dir)):
        pass


def test_a_server_that_does_not_come_up_lets_go(tmp_path: Path) -> None:
    state_dir = str(tmp_path)
    with pytest.raises(ConfigError, match="expected one that begins with tcp"):
        host(RunConfig(), Place(address="nowhere", state_dir=state_dir))
    with host(RunConfig(), Place(address="memory://lock-5", state_dir=state_dir)):
        pass
