"""What stands in a journal: records, and the error of one that cannot be used."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from lightning_async.errors import CallerError
from lightning_async.wire.checksum import checksum
from lightning_async.wire.frames import Frame, flat


class JournalError(CallerError):
    """A journal cannot be used; the text says what to do."""


@dataclass(frozen=True)
class Record:
    """One event. `head` is the writer's; `frames` are its vectors.

    `sums` are the checksums of the frames where whoever made the record has them: of what came over the network they
    are its sender's, so that the journal's sum covers all of the way from there to the disk and back.
    """

    number: int
    kind: str
    head: bytes
    frames: tuple[Frame, ...] = ()
    sums: tuple[int, ...] = field(default=(), compare=False, repr=False)

    @property
    def bytes(self) -> int:
        return len(self.head) + sum(len(flat(frame)) for frame in self.frames)

    def sum(self) -> int:
        """The checksum of all of it."""
        text = f"{self.number} {self.kind} {[len(frame) for frame in self.frames]}".encode()
        total = zlib.crc32(self.head, zlib.crc32(text))
        sums = self.sums or tuple(map(checksum, self.frames))
        return zlib.crc32(struct.pack(f"<{len(self.frames)}q", *sums), total)
