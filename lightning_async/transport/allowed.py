"""The allow-list of a server: which key is who. A text file, one line a key, read again whenever it has changed.

    # name   role      public key (64 hexadecimal digits)   workers (1 when left out)
    alice    worker    5f0c...                              2
    bob      revoked   91aa...

Roles: worker; observer (reads status and parameters, counts for nothing); owner (an observer that gives orders);
revoked. A name belongs to one key for ever, so what the run knows of a name is of one key: a revoked line stays. A line
that cannot be read allows nobody and is told in the log. People edit this file while a server reads it, and some
editors empty it first: a key that is revoked is so at once, one whose line has vanished when it does not come back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_async.errors import ConfigError
from lightning_async.files import read_guarded, write_private
from lightning_async.transport.keys import read_hex

FILE = "allowed.txt"
HEAD = "# name  role (worker, observer, owner, revoked)  public key  [workers that it may bear]\n"
REVOKED = "revoked"
ROLES = ("worker", "observer", "owner", REVOKED)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
MOST_WORKERS = 1024
VANISHED_S = 3.0  # after which a line that is not there any more is one that was taken out
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """Who is at the other end of a connection. `role` is "" for a key that is not on the list."""

    name: str = ""
    role: str = ""
    workers: int = 1  # that may bear its name at a time: NAME, NAME/1, ...


STRANGER = Caller()


class Allowed:
    """The list in `folder`, as it was at the last `refresh`. Raises ConfigError when there is none."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = folder / FILE, clock
        self._seen, self._changed_at = self._stamp(), -VANISHED_S
        self.callers = self._found = self._load()
        self.edition = 1  # how often it has changed

    def refresh(self) -> None:
        """Read the file if it has changed. What cannot be read at all leaves the list as it was."""
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._found, self._seen, self._changed_at = self._load(), stamp, self._clock()
        except ConfigError as error:
            log.error("the list of keys stays as it was: %s", error)
        callers = self._found | self._vanished()
        if callers != self.callers:
            self.callers = callers
            self.edition += 1

    def _vanished(self) -> dict[bytes, Caller]:
        """Those whose lines were there before the last change, while that may be half of one."""
        if self._clock() - self._changed_at >= VANISHED_S:
            return {}
        names = {caller.name for caller in self._found.values()}
        return {k: caller for k, caller in self.callers.items() if k not in self._found and caller.name not in names}

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror}; `keys server` makes it") from error
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _load(self) -> dict[bytes, Caller]:
        callers: dict[bytes, Caller] = {}
        names: set[str] = set()
        for number, line in enumerate(_text(self._path).splitlines(), 1):
            try:
                entry = read_line(line)
                if entry is not None:
                    key, caller = entry
                    if key in callers and caller.role == REVOKED:
                        callers[key] = replace(callers[key], role=REVOKED)
                        continue
                    if key in callers or caller.name in names:
                        raise ValueError("its name or its key stands further up too")
                    callers[key] = caller
                    names.add(caller.name)
            except ValueError as error:
                log.error("%s, line %d allows nobody: %s", self._path, number, error)
        return callers


def read_line(line: str) -> tuple[bytes, Caller] | None:
    """The key and whose it is; None for an empty line. Raises ValueError."""
    words = line.partition("#")[0].split()
    if not words:
        return None
    if len(words) not in (3, 4):
        raise ValueError("expected: name role key [workers]")
    name, role, key = words[:3]
    workers = int(words[3]) if len(words) == 4 else 1
    if NAME.fullmatch(name) is None:
        raise ValueError("a name is 1 to 64 letters, digits, dots, dashes and underscores")
    if role not in ROLES or not 1 <= workers <= MOST_WORKERS:
        raise ValueError(f"a role is one of {', '.join(ROLES)}; workers are 1 to {MOST_WORKERS}")
    return read_hex(key), Caller(name, role, workers)


def allow(folder: Path, key: bytes, caller: Caller) -> Caller:
    """Add a line; the caller that `key` is now. Raises ConfigError for a name that another key has, or had."""
    with _editing(folder) as lines:
        for line in lines:
            known = _entry(line)
            if known is not None and known[0] == key:
                return known[1]
            if known is not None and known[1].name == caller.name:
                raise ConfigError(f"a key called {caller.name!r} is on the list already; choose another name")
        if NAME.fullmatch(caller.name) is None:
            raise ConfigError(
                f"got the name {caller.name[:80]!r}; letters, digits, dots, dashes and underscores make one"
            )
        lines.append(_written(key, caller))
    return caller


def revoke(folder: Path, name: str) -> None:
    """From now on the key called `name` is worth nothing. Raises ConfigError when there is none. Idempotent."""
    with _editing(folder) as lines:
        for index, line in enumerate(lines):
            known = _entry(line)
            if known is not None and known[1].name == name:
                lines[index] = _written(known[0], replace(known[1], role=REVOKED))
                return
        raise ConfigError(f"no key is called {name[:80]!r} in {folder / FILE}")


def begin(folder: Path) -> None:
    """An empty list, unless there is one."""
    if not (folder / FILE).exists():
        write_private(folder / FILE, HEAD)


def _written(key: bytes, caller: Caller) -> str:
    return f"{caller.name}  {caller.role}  {key.hex()}" + (f"  {caller.workers}" if caller.workers > 1 else "")


def _entry(line: str) -> tuple[bytes, Caller] | None:
    with contextlib.suppress(ValueError):
        return read_line(line)
    return None


@contextlib.contextmanager
def _editing(folder: Path) -> Iterator[list[str]]:
    """The lines, written back when the block ends; `alone`."""
    with alone(folder):
        before = _text(folder / FILE)
        lines = before.splitlines()
        yield lines
        if (text := "\n".join(lines) + "\n") != before:
            write_private(folder / FILE, text)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time, and one thread, where the system has such locks."""
    descriptor = os.open(folder / ".allowed.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _text(path: Path) -> str:
    """The file's text. Raises ConfigError, also when others than its owner could add themselves to it."""
    text, mode = read_guarded(path, "`lightning-async keys server` makes it")
    if mode & 0o022:
        raise ConfigError(f"{path} can be written by others (mode {mode:03o}); `chmod 600 {path}`")
    return text
