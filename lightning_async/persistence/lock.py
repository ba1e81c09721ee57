"""One server at a time: a state_dir belongs to the process that holds its lock.

The lock is the kernel's, on an open file, so it ends with the process, however that ends: there is no stale one to
remove. The file stays, and says who held it last.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path

from lightning_async.errors import CallerError

NAME = "server.lock"
log = logging.getLogger(__name__)


class LockedError(CallerError):
    """A state_dir is another server's; the text says whose."""


class Lock:
    """Holds `folder` until `close`. Raises LockedError when another process does, OSError where nothing is written."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / NAME).open("a+", encoding="utf-8")
        try:
            _take(self._file.fileno())
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read(200).strip() or "its owner is not known"
            self._file.close()
            raise LockedError(
                f"another server keeps its run in {folder} ({owner}). Two would destroy it: stop that one, or give "
                "another state_dir"
            ) from None
        except OSError as error:  # some network file systems have no locks
            log.warning("%s cannot be locked (%s): see to it that no second server uses it", folder, error.strerror)
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def close(self) -> None:
        """Let go of the folder. Idempotent."""
        self._file.close()


def _take(descriptor: int) -> None:
    """Lock an open file for this process. Raises BlockingIOError when another one has."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 2**20, os.SEEK_SET)  # behind the text, which others are to read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
