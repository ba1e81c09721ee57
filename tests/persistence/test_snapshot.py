"""Snapshots on disk: whole or not there, two of them, and damage is noticed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from lightning_async.persistence import Snapshot, SnapshotError, newest, snapshot, write

RECORD = {"run": "x", "version": 3, "members": {"a": {"loss": 0.1, "last_seq": 7}}, "none": None}


def state(value: float) -> Snapshot:
    tensors = {
        "p": torch.full((1000,), value),
        "step": torch.tensor(value),
        "empty": torch.empty(0),
        "e2": torch.empty(0),
    }
    return Snapshot({**RECORD, "value": value}, tensors)


def value_of(folder: Path) -> float | None:
    found = newest(folder)
    if found is None:
        return None
    assert float(found.tensors["p"][-1]) == found.record["value"] == float(found.tensors["step"])
    return float(found.record["value"])


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "nowhere") is None
    write(tmp_path / "deep" / "folder", state(1.5))
    found = newest(tmp_path / "deep" / "folder")
    assert found is not None
    assert found.record == {**RECORD, "value": 1.5}
    assert {name: tuple(t.shape) for name, t in found.tensors.items()} == {
        "p": (1000,),
        "step": (),
        "empty": (0,),
        "e2": (0,),
    }


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path, state(float(i)))
        assert value_of(tmp_path) == i
    assert names(tmp_path) == ["snapshot-00000011", "snapshot-00000012"]


@pytest.mark.parametrize("file", [snapshot.TENSORS, snapshot.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_snapshot_falls_back_to_the_one_before(
    tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, state(1.0))
    hurt(write(tmp_path, state(2.0)) / file, damage)
    assert value_of(tmp_path) == 1.0
    assert "snapshot-00000002" in caplog.text
    assert "going on from snapshot-00000001" in caplog.text
    assert "what the journal has after it" in caplog.text


def hurt(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
        return
    if damage == "flip":
        data[len(data) - 9] ^= 1
    path.write_bytes(data if damage == "flip" else data[: len(data) // 2])


def test_when_all_are_damaged_it_says_what_to_do(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        hurt(write(tmp_path, state(value)) / snapshot.TENSORS, "flip")
    with pytest.raises(SnapshotError, match=r"no snapshot in .* move the folder away"):
        newest(tmp_path)


def test_a_record_that_was_altered_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, state(1.0)) / snapshot.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["record"]["version"] = 4
    path.write_text(json.dumps(manifest))
    with pytest.raises(SnapshotError, match="digest"):
        newest(tmp_path)


def test_another_format_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, state(1.0)) / snapshot.MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(SnapshotError, match="format 99, this version reads 1"):
        newest(tmp_path)


def test_a_crash_at_any_moment_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails at the n-th call that forces or renames, for every n."""
    write(tmp_path, state(1.0))
    calls = 0
    for fail_at in range(1, 6):
        calls = 0

        def failing(real: object, fail_at: int = fail_at) -> object:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal calls
                calls += 1
                if calls == fail_at:
                    raise OSError("the disk is full")
                return real(*args, **kwargs)  # type: ignore[operator]

            return call

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", failing(os.fsync))
            patched.setattr(Path, "rename", failing(Path.rename))
            with pytest.raises(OSError, match="full"):
                write(tmp_path, state(2.0))
        assert value_of(tmp_path) == (2.0 if fail_at == 5 else 1.0)
    write(tmp_path, state(3.0))
    assert value_of(tmp_path) == 3.0


def test_everything_is_forced_to_the_disk_before_its_name_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def forced(descriptor: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", forced)
    monkeypatch.setattr(Path, "rename", renamed)
    write(tmp_path, state(1.0))
    assert done == [snapshot.TENSORS, snapshot.MANIFEST, "00000001.partial", "rename", tmp_path.name]
