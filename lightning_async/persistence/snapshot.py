"""Snapshots: folders `snapshot-00000007` that are whole or not there at all.

Each holds tensors.safetensors and manifest.json: a record of plain values, and the SHA-256 of both. It is written
aside under a name that nobody reads, forced to the disk, and only then renamed; so a crash at any moment leaves the one
before it untouched. The newest two are kept: when a disk has damaged the last, the one before it is read.

What a run did after its newest snapshot stands in its journal, and is kept there for as long as the oldest snapshot
needs it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_async.errors import CallerError
from lightning_async.files import force

FORMAT = 1
KEPT = 2
TENSORS, MANIFEST = "tensors.safetensors", "manifest.json"
PIECE_BYTES = 2**20
_NAME = re.compile(r"snapshot-([0-9]{8,})")
log = logging.getLogger(__name__)


class SnapshotError(CallerError):
    """A snapshot cannot be read; the text says what to do."""


@dataclass(frozen=True)
class Snapshot:
    """A state: plain JSON values, and contiguous tensors on the CPU that share no memory."""

    record: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def write(folder: Path, snapshot: Snapshot, kept: int = KEPT, at: Callable[[str], None] = lambda point: None) -> Path:
    """Store `snapshot` as the newest in `folder`, which keeps `kept`; afterwards it survives a crash of the machine.

    `at` is told how far it is, for tests that end the process there. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = max(_all(folder), default=0) + 1
    aside, place = folder / f"{number:08d}.partial", folder / f"snapshot-{number:08d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    at("snapshot.begun")
    save_file(dict(snapshot.tensors), aside / TENSORS)
    force(aside / TENSORS)
    at("snapshot.tensors")
    (aside / MANIFEST).write_text(_manifest(aside / TENSORS, snapshot.record), encoding="utf-8")
    force(aside / MANIFEST)
    force(aside)
    at("snapshot.manifest")
    aside.rename(place)
    force(folder)
    at("snapshot.renamed")
    for old in sorted(_all(folder))[:-kept]:
        shutil.rmtree(folder / f"snapshot-{old:08d}", ignore_errors=True)
    at("snapshot.cleaned")
    return place


def journal_needed_after(folder: Path) -> int:
    """The number of the last record that is in every snapshot here: a journal may forget the ones up to it. 0: none.

    A damaged snapshot needs nothing, since it is never read.
    """
    numbers = [_journal_number(folder / f"snapshot-{number:08d}") for number in _all(folder)]
    return min((number for number in numbers if number is not None), default=0)


def _journal_number(path: Path) -> int | None:
    try:
        return int(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["record"].get("journal", 0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def newest(folder: Path) -> Snapshot | None:
    """The newest snapshot that is whole; None where there has never been one.

    A damaged one is skipped with a warning. Raises SnapshotError when all are damaged.
    """
    found, problems = _all(folder), []
    for number in sorted(found, reverse=True):
        path = folder / f"snapshot-{number:08d}"
        try:
            snapshot, when = _read(path)
        except SnapshotError as error:
            problems.append(f"{path.name}: {error}")
            continue
        if problems:
            log.warning(
                "%s; going on from %s, written %s, and what the journal has after it",
                "; ".join(problems),
                path.name,
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)),
            )
        return snapshot
    if problems:
        raise SnapshotError(
            f"no snapshot in {folder} can be read ({'; '.join(problems)}). Put a copy of one back, or move the folder "
            "away to begin the run anew"
        )
    return None


def oldest(folder: Path) -> Snapshot | None:
    """The oldest snapshot, which a journal that is kept goes on from; None without any. Raises SnapshotError."""
    found = _all(folder)
    return _read(folder / f"snapshot-{min(found):08d}")[0] if found else None


def _all(folder: Path) -> set[int]:
    """The numbers of the snapshots there."""
    names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
    return {int(match[1]) for name in names if (match := _NAME.fullmatch(name))}


def _manifest(tensors: Path, record: Mapping[str, Any]) -> str:
    head = {"format": FORMAT, "written_at": time.time(), "tensors_sha256": _sha256(tensors)}
    return json.dumps(head | {"record_sha256": _record_digest(record), "record": record})


def _read(path: Path) -> tuple[Snapshot, float]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise SnapshotError(f"format {manifest['format']}, this version reads {FORMAT}; update the package")
        record, when = manifest["record"], float(manifest["written_at"])
        if manifest["record_sha256"] != _record_digest(record):
            raise SnapshotError("its record does not have the digest that it was written with")
        if manifest["tensors_sha256"] != _sha256(path / TENSORS):
            raise SnapshotError("its tensors do not have the digest that they were written with")
        return Snapshot(record, load_file(path / TENSORS)), when
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise SnapshotError(f"{type(error).__name__}: {error}") from error


def _record_digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
