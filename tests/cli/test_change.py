"""`lightning-async change` as people give it: by an owner's token or key, kept over a restart, refused to others."""

from __future__ import annotations

from pathlib import Path

import pytest
from eventually import ENOUGH_S
from keyring import Keyring
from serving import served

from lightning_async.cli import main as cli
from lightning_async.cli.change import read
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError

PATIENT, THREE = f"--timeout={ENOUGH_S}", RunConfig(quorum=3)


def test_it_holds_at_once_and_after_a_restart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rights = ["--state-dir", str(tmp_path / "state"), PATIENT]
    with served(THREE, state=tmp_path / "state") as hosted:
        address, run = hosted.service.address, hosted.service.coordinator.run
        assert cli.main(["change", address, "quorum=2", "grace_s=1.5", *rights]) == 0
        assert "quorum=2, grace_s=1.5" in capsys.readouterr().out
        assert (run.config.quorum, run.config.grace_s) == (2, 1.5)
        assert cli.main(["status", address, PATIENT]) == 0
        assert "changed by its owner: quorum from 3 to 2, grace_s from 0.0 to 1.5" in capsys.readouterr().out
        assert cli.main(["change", address, "quorum=1", "compression=topk", *rights]) == 2
        assert "compression: cannot be changed while a run goes on" in capsys.readouterr().err
        assert run.config.quorum == 2
    assert cli.main(["status", "--state", str(tmp_path / "state")]) == 0
    assert "quorum from 3 to 2" in capsys.readouterr().out
    with served(THREE, state=tmp_path / "state") as again:
        config = again.service.coordinator.run.config
        assert (config.quorum, config.grace_s) == (2, 1.5)


def test_only_an_owner_may(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(THREE, state=tmp_path / "state") as hosted:
        assert cli.main(["change", hosted.service.address, "quorum=2", PATIENT]) == 2
        assert "only the server's owner" in capsys.readouterr().err
        assert hosted.service.coordinator.run.config.quorum == 3


def test_by_keys_only_the_role_owner_may(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ring = Keyring(tmp_path / "server")
    with served(THREE, ring.folder, tmp_path / "state") as hosted:
        for role, code in (("worker", 2), ("observer", 2), ("owner", 0)):
            file = ring.file(ring.key(role, role), tmp_path / f"{role}.key")
            hosted.service._reception._door._refresh()
            words = ["change", hosted.service.address, "quorum=2", "--key", str(file), PATIENT]
            assert cli.main(words) == code
            assert hosted.service.coordinator.run.config.quorum == (2 if code == 0 else 3)
            assert code == 0 or "may not Order" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["quorum"], ["quorum=x"], ["no_such=1"], ["quorum=1", "quorum=2"], ["total_steps=1.5"], ["=3"], ["beat_s=z"]],
)
def test_words_that_are_no_value(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="got"):
        read(words)


def test_words_are_read_by_their_types() -> None:
    words = ["quorum=all", "total_steps=none", "grace_s=auto", "staleness=adaptive", "barrier_s=2"]
    assert read(words) == {
        "quorum": "all",
        "total_steps": None,
        "grace_s": "auto",
        "staleness": "adaptive",
        "barrier_s": 2.0,
    }
