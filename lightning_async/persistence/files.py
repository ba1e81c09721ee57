"""Forcing files and folders to the disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def force(path: Path) -> None:
    """What was written to `path`, a file or a folder, is on the disk afterwards. Raises OSError."""
    if path.is_dir() and sys.platform == "win32":
        return  # a folder cannot be opened there, and its entries are journalled
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def force_data(descriptor: int) -> None:
    """What was written to an open file is on the disk afterwards, with as much about the file as reading needs."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def keep_no_copy(descriptor: int) -> None:
    """What is on the disk of an open file need not stay in memory too: pages that are used again are already there for
    the next write, and new ones cost it time."""
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
