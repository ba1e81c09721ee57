"""Files that are on the disk when we say so, and files that are their owner's alone."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from lightning_async.errors import ConfigError


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


def write_private(path: Path, text: str) -> None:
    """Put `text` into `path`, readable and writable for the owner alone: whole or not at all, whenever this process
    dies, and on the disk afterwards. Raises ConfigError."""
    aside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        force(path.parent)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def read_private(path: Path) -> str:
    """What is in a file that must be its owner's alone. Raises ConfigError, also when others can read it."""
    text, mode = read_guarded(path)
    if mode & 0o077:
        raise ConfigError(
            f"{path} holds a secret and its mode is {mode:03o}: others on this machine can read it. If nobody has, "
            f"`chmod 600 {path}`; else make a new key, and have this one revoked"
        )
    return text


def read_guarded(path: Path, do: str = "") -> tuple[str, int]:
    """The text of a file, and its mode (0o600 where the system has none). Raises ConfigError, with what to `do` for a
    file that cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode) if os.name == "posix" else 0o600
            return file.read(), mode
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}{do and f'; {do}'}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text: {error}") from error
