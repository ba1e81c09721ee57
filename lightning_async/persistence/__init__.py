"""What survives the process: snapshots of a run on disk."""

from lightning_async.persistence.snapshot import Snapshot, SnapshotError, newest, write

__all__ = ["Snapshot", "SnapshotError", "newest", "write"]
