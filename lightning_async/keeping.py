"""Where the server of a run keeps its state, and how much of it: plain values, also for another process."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_async.errors import ConfigError

SNAPSHOT_EVERY_S = 30.0


@dataclass(frozen=True)
class StateDir:
    """A state_dir with the options that `lightning-async serve` has for one (docs/durability.md). Raises ConfigError.

    Args:
        path: the folder.
        keep_journal: forget nothing that is in the journal, for `lightning-async replay`.
        snapshot_every_s: seconds between two snapshots while anything changes.
        snapshot_every_versions: versions between two snapshots, if that comes first; 0: only time counts.
    """

    path: str
    keep_journal: bool = False
    snapshot_every_s: float = SNAPSHOT_EVERY_S
    snapshot_every_versions: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.snapshot_every_s < math.inf:
            raise ConfigError(f"snapshot_every_s: got {self.snapshot_every_s!r}, expected seconds > 0")
        if self.snapshot_every_versions < 0:
            raise ConfigError(f"snapshot_every_versions: got {self.snapshot_every_versions!r}, expected 0 or more")


def in_words(state_dir: str | Path | StateDir | None) -> dict[str, Any]:
    """What an embedded server is told: keys of its order (cli/embedded.py)."""
    if state_dir is None:
        return {"state_dir": None}
    whole = state_dir if isinstance(state_dir, StateDir) else StateDir(str(state_dir))
    values = asdict(whole)
    return {"state_dir": values.pop("path"), **values}
