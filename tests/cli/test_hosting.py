"""What a server decides by itself when it begins: the codec that nobody has named."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_async.cli import hosting
from lightning_async.cli.hosting import host
from lightning_async.cli.place import Place
from lightning_async.config import RunConfig
from lightning_async.server.rules import canonical, settled


def used(config: RunConfig, folder: Path | None = None) -> str | None:
    """The codec of the run of a server that listens on loopback."""
    with host(config, Place(address="tcp://127.0.0.1:0", state_dir=None if folder is None else str(folder))) as hosted:
        return hosted.service.coordinator.run.config.compression


@pytest.mark.parametrize(
    ("config", "near", "far"),
    [
        (RunConfig(), "none", "int8"),
        (RunConfig(compression="fp16"), "fp16", "fp16"),
    ],
)
def test_within_one_machine_nothing_is_lost_and_over_a_network_nobody_waits(
    config: RunConfig, near: str, far: str
) -> None:
    assert (settled(config, far=False).compression, settled(config, far=True).compression) == (near, far)


def test_one_machine_and_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert used(RunConfig()) == "none"
    monkeypatch.setattr(hosting, "is_far", lambda place: True)
    assert used(RunConfig()) == canonical(RunConfig(compression="int8")).compression
    assert used(RunConfig(compression="none")) == "none"


def test_a_run_that_goes_on_keeps_its_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = used(RunConfig(compression="topk"), tmp_path)
    assert before == canonical(RunConfig(compression="topk")).compression
    assert used(RunConfig(), tmp_path) == before
    monkeypatch.setattr(hosting, "is_far", lambda place: True)
    assert used(RunConfig(), tmp_path) == before
