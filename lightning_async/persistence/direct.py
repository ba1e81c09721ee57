"""Large payloads to a file past the page cache, straight from the memory in which they came.

A copy of 2.5 MB into the page cache takes a core longer than everything else that a journal does with it. A disk that
is written directly (O_DIRECT) takes whole pages that begin at a page in the file and at a page in memory; ZeroMQ's
frames begin anywhere. So a payload is put where its largest frame has the same offset within a page in the file as it
has in memory: then all its pages but the first and the last go to the disk as they lie there, in one call with copies
of these two.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_async.wire.frames import Frame, flat

PAGE = 4096  # every disk and file system takes multiples of this, wherever it takes anything directly
DIRECT_BYTES = 2**18  # a smaller payload is copied sooner than a disk answers


def opened(path: Path) -> int | None:
    """A descriptor of the file at `path` for direct writing; None where the system or the file system has none."""
    try:
        return os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except (AttributeError, OSError):
        return None


def begin(frames: Sequence[Frame], after: int) -> int:
    """Where in the file `frames` may begin, at `after` or less than two pages behind it."""
    before, largest = _largest(frames)
    return _up(after) + (_address(frames[largest]) - before) % PAGE


def write(descriptor: int, frames: Sequence[Frame], start: int) -> int:
    """Write `frames` at byte `start`, which is from `begin`; the bytes from there on that the file has now.

    There may be fewer than there should, or none where the file system refuses to write directly after all. Zeros
    stand before `start` and behind the end in their pages. Raises OSError.
    """
    at, parts = _parts(frames, start)
    try:
        done = os.pwritev(descriptor, parts, at)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        done = 0
    return max(0, at + done - start)


def _parts(frames: Sequence[Frame], start: int) -> tuple[int, list[memoryview]]:
    """A position at a page, and what is to be written there: the whole pages of the largest frame as they are, where
    it has any, and copies of what stands around them."""
    before, index = _largest(frames)
    largest, at = memoryview(flat(frames[index])), start - start % PAGE
    whole = _up(start + before) - start - before
    rest = whole + (len(largest) - whole) // PAGE * PAGE
    if rest <= whole:
        return at, [_copied(frames, start - at)]
    head = _copied([*frames[:index], largest[:whole]], start - at)
    tail = _copied([largest[rest:], *frames[index + 1 :]], 0)
    return at, [part for part in (head, largest[whole:rest], tail) if len(part)]


def _largest(frames: Sequence[Frame]) -> tuple[int, int]:
    """How many bytes stand before the largest frame, and its index."""
    sizes = [len(flat(frame)) for frame in frames]
    index = sizes.index(max(sizes))
    return sum(sizes[:index]), index


def _copied(frames: Sequence[Frame], at: int) -> memoryview:
    """Pages of their own that hold `frames` from byte `at` on, and zeros around them; none for no bytes."""
    size = sum(len(frame) for frame in frames)
    if size == 0:
        return memoryview(b"")
    pages = memoryview(mmap.mmap(-1, _up(at + size)))
    for frame in frames:
        pages[at : at + len(frame)] = frame
        at += len(frame)
    return pages


def _up(position: int) -> int:
    return -(-position // PAGE) * PAGE


def _address(frame: Frame) -> int:
    return int(np.frombuffer(frame, dtype=np.uint8).__array_interface__["data"][0])
