"""What a disk takes from programs that do nothing but write: alone, and beside a server that keeps nothing.

Both append payloads from one page-aligned buffer past the page cache, where the system can, and force them: nothing
that keeps payloads does less for each.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PAYLOAD_BYTES = 2_500_000
GROUPS = (1, 3, 6)  # payloads that are forced together
_PAGES = -(-PAYLOAD_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE


class Writer:
    """Appends payloads to a new file."""

    def __init__(self, path: Path) -> None:
        self._buffer = mmap.mmap(-1, _PAGES)
        self._buffer.write(os.urandom(_PAGES))
        self._file = -1
        with suppress(AttributeError, OSError):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
        if self._file < 0:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def append(self, count: int) -> None:
        """`count` payloads, which are on the disk afterwards."""
        for _ in range(count):
            if os.write(self._file, self._buffer) != _PAGES:
                raise OSError("the disk took a part of a payload only")
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)


def alone(folder: Path) -> float:
    """Payloads a second, in the groups that are best for this disk."""
    return max(_alone(folder / "alone", group) for group in GROUPS)


def _alone(path: Path, group: int) -> float:
    writer = Writer(path)
    began = time.perf_counter()
    for _ in range(12 // group):
        writer.append(group)
    took_s = time.perf_counter() - began
    writer.close()
    return 12 / took_s


class Beside:
    """A process that appends a payload for each `count`, in the groups that have gathered."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "bench.disk", str(folder / "beside")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it is there
        self.count = lambda: os.write(self._process.stdin.fileno(), b".")  # type: ignore[union-attr]

    def end(self) -> None:
        """Wait until it has written everything."""
        _, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"it ended with status {self._process.returncode}")


def _beside(path: Path) -> None:
    writer = Writer(path)
    print("ready", flush=True)
    while counted := os.read(0, 4096):
        writer.append(len(counted))
    writer.close()


if __name__ == "__main__":
    _beside(Path(sys.argv[1]))
