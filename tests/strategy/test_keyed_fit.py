"""A fit with a server that has keys: named in the strategy, in the environment, or found by the server's address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from keyring import Keyring
from models import STEPS, Net, fit

from lightning_async import AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError, RefusedError
from lightning_async.server import ServerThread
from lightning_async.transport.keys import VARIABLE, file_for


@pytest.fixture
def server(ring: Keyring) -> Iterator[ServerThread]:
    with ServerThread(RunConfig(quorum=2), keys=ring.folder) as running:
        yield running


@pytest.mark.parametrize("way", ["argument", "environment", "address"])
def test_a_worker_has_its_keys_name(
    server: ServerThread, ring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The quorum is not met, so its last updates wait, and it looks once more as an observer: with its key too."""
    file = ring.file(ring.key("alice"), file_for(server.address) if way == "address" else tmp_path / "alice.key")
    if way == "environment":
        monkeypatch.setenv(VARIABLE, str(file))
    given: dict[str, Any] = {"key": str(file)} if way == "argument" else {}
    fit(Net, AsyncWANStrategy(server.address, **given), max_epochs=1)
    run = server.coordinator.run
    assert run.steps_total == STEPS
    assert [member.name for member in run.members if member.role == "worker"] == ["alice"]
    assert all(member.name.startswith("alice/") for member in run.members if member.role == "observer")


def test_what_cannot_be_is_said(server: ServerThread, ring: Keyring, tmp_path: Path) -> None:
    file = str(ring.file(ring.key("alice"), tmp_path / "alice.key"))
    with pytest.raises(ConfigError, match="bears no other name"):
        fit(Net, AsyncWANStrategy(server.address, key=file, name="bob"), max_epochs=1)
    with pytest.raises(RefusedError, match="speaks only with those who have a key"):
        fit(Net, AsyncWANStrategy(server.address, key="none"), max_epochs=1)
    with pytest.raises(ConfigError, match=r"no key for tcp://192\.0\.2\.1:5"):
        fit(Net, AsyncWANStrategy("tcp://192.0.2.1:5"), max_epochs=1)
    with pytest.raises(ConfigError, match="cannot read"):
        fit(Net, AsyncWANStrategy(server.address, key=str(tmp_path / "nothing")), max_epochs=1)
