"""What survives the process: the journal of a run, and snapshots of it, on disk."""

from lightning_async.persistence.commits import Commits
from lightning_async.persistence.journal import Journal, open_journal
from lightning_async.persistence.lock import Lock, LockedError
from lightning_async.persistence.record import JournalError, Record
from lightning_async.persistence.snapshot import Snapshot, SnapshotError, journal_needed_after, newest, oldest, write

__all__ = ["Commits", "Journal", "JournalError", "Lock", "LockedError", "Record", "Snapshot", "SnapshotError"]
__all__ += ["journal_needed_after", "newest", "oldest", "open_journal", "write"]
