"""What stands in a journal: records, and the error of one that cannot be used."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from lightning_async.errors import CallerError
from lightning_async.wire.checksum import checksum
from lightning_async.wire.frames import Frame, flat


class JournalError(CallerError):
    """A journal cannot be used; the text says what to do."""


@dataclass(frozen=True)
class Record:
    """One event. `head` is the writer's; `frames` are its vectors."""

    number: int
    kind: str
    head: bytes
    frames: tuple[Frame, ...] = ()

    @property
    def bytes(self) -> int:
        return len(self.head) + sum(len(flat(frame)) for frame in self.frames)

    def sum(self) -> int:
        """The checksum of all of it."""
        text = f"{self.number} {self.kind} {[len(frame) for frame in self.frames]}".encode()
        total = zlib.crc32(self.head, zlib.crc32(text))
        return zlib.crc32(struct.pack(f"<{len(self.frames)}q", *map(checksum, self.frames)), total)
