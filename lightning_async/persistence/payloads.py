"""The payloads of a journal: files `payload-<first record>.bin` that are appended to, and unlinked when pruned.

A large payload goes to the disk directly (direct.py), a small one through the page cache; none is copied together.
Nothing here knows what is committed: the journal's rows say where a payload stands, and whatever lies behind the last
of them is cut off. `forcing` is done before the commit of the rows, so a row never names bytes that a crash takes away.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

from lightning_async.files import force, force_data, keep_no_copy
from lightning_async.persistence import direct
from lightning_async.wire.frames import Frame

SEGMENT_BYTES = 2**28  # a file is followed by the next one once it is this long
_NAME = re.compile(r"payload-([0-9]+)\.bin")


@dataclass(frozen=True)
class Place:
    """A position in the file that begins with record number `segment`; segment 0 is none."""

    segment: int = 0
    start: int = 0


class Payloads:
    """The payload files of one folder. `end` is where the next payload goes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: FileIO | None = None
        self._direct: int | None = None  # the same file, past the page cache
        self._dirty = False
        self.end = Place()

    def write(self, number: int, frames: Sequence[Frame]) -> Place:
        """Append the frames of record `number`; where they begin. Raises OSError."""
        if self._file is None or self.end.start >= SEGMENT_BYTES:
            self._begin(number)
        assert self._file is not None
        size, start, done = sum(map(len, frames)), self.end.start, 0
        self._dirty = True
        if size >= direct.DIRECT_BYTES and self._direct is not None:
            start = direct.begin(frames, start)
            done = direct.write(self._direct, frames, start)
        self._file.seek(start + done)
        for frame in frames:
            view = memoryview(frame)[done:]
            done = max(0, done - len(frame))
            while len(view):
                view = view[self._file.write(view) :]
        place, self.end = Place(self.end.segment, start), Place(self.end.segment, start + size)
        return place

    def forcing(self) -> Callable[[], None]:
        """What forces all that was written so far to the disk, once and from any thread, and may raise OSError.

        More may be written meanwhile.
        """
        if not self._dirty or self._file is None:
            return lambda: None
        self._dirty = False
        return partial(_force, os.dup(self._file.fileno()))

    def back_to(self, place: Place) -> int:
        """Cut off what lies behind `place`; how many bytes that were. Raises OSError."""
        self._let_go()
        self.end, lost = place, 0
        for segment in self._segments():
            path, keep = self._path(segment), place.start if segment == place.segment else None
            if segment < place.segment:
                continue
            size = path.stat().st_size
            lost += _written(path, keep or 0, size)
            if keep is None:
                path.unlink()
            else:
                self._file = _cut(path, keep, min(size, keep))
                self._direct = direct.opened(path)
        return lost

    def read(self, place: Place, size: int) -> bytes:
        """`size` bytes at `place`; fewer where the file ends. Raises OSError."""
        with FileIO(self._path(place.segment)) as file:
            file.seek(place.start)
            return file.read(size)

    def forget_before(self, number: int) -> None:
        """Unlink the files that hold only records below `number`."""
        for segment, following in itertools.pairwise(self._segments()):
            if following <= number:
                self._path(segment).unlink(missing_ok=True)

    def close(self) -> None:
        """Idempotent."""
        self._let_go()

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._direct is not None:
            os.close(self._direct)
        self._file, self._direct, self._dirty = None, None, False

    def _begin(self, number: int) -> None:
        self.forcing()()
        self._let_go()
        self._file = FileIO(self._path(number), "w+")
        self._direct = direct.opened(self._path(number))
        self.end = Place(number, 0)
        force(self._folder)

    def _segments(self) -> list[int]:
        return sorted(int(match[1]) for path in self._folder.iterdir() if (match := _NAME.fullmatch(path.name)))

    def _path(self, segment: int) -> Path:
        return self._folder / f"payload-{segment:012d}.bin"


def _force(descriptor: int) -> None:
    try:
        force_data(descriptor)
        keep_no_copy(descriptor)
    finally:
        os.close(descriptor)


def _written(path: Path, start: int, size: int) -> int:
    """How many bytes somebody has written to the file behind byte `start`: not the zeros of a page's end."""
    if size - start >= direct.PAGE:
        return size - start
    with FileIO(path) as file:
        file.seek(start)
        return len(file.read().rstrip(b"\0"))


def _cut(path: Path, at: int, size: int) -> FileIO:
    """The file at `path`, cut to `size` bytes and open at byte `at`. Raises OSError, and then nothing is open: what is
    written next goes to a file of its own, never over what is here."""
    file = FileIO(path, "r+")
    try:
        file.seek(at)
        file.truncate(size)
    except BaseException:
        file.close()
        raise
    return file
