"""What a crash has left at the end of a write-ahead log (https://www.sqlite.org/fileformat2.html#walformat).

SQLite ignores frames behind the last whole commit without a word. That is right after a crash: at most one commit can
be under way, and nobody was told of it. Two commits there mean that the file was damaged later, and that what was
acknowledged stands in it; somebody should know.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

HEADER = struct.Struct(">8I")  # magic, format, page size, checkpoint, salt 1, salt 2, checksum 1, checksum 2
FRAME = struct.Struct(">6I")  # page, pages after the commit or 0, salt 1, salt 2, checksum 1, checksum 2
MAGIC = (0x377F0682, 0x377F0683)


@dataclass(frozen=True)
class Lost:
    """Frames of the log that belong to no whole commit, and how many commits end among them."""

    frames: int = 0
    commits: int = 0

    def __str__(self) -> str:
        return f"{self.frames} pages of the write-ahead log"


def frames(log: Path) -> list[bool]:
    """The frames that were written since the log was last begun anew; True for those that end a commit."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        head = file.read(HEADER.size)
        if len(head) < HEADER.size:
            return []
        magic, _, page, _, *salts, _, _ = HEADER.unpack(head)
        found: list[bool] = []
        while magic in MAGIC and len(read := file.read(FRAME.size)) == FRAME.size:
            _, pages, *own, _, _ = FRAME.unpack(read)
            if own != salts:
                break  # left from before the log was begun anew
            found.append(pages > 0)
            file.seek(page, 1)
        return found


def lost(written: list[bool], whole: int) -> Lost:
    """What of the frames `written` lies behind the first `whole` ones, which are those that SQLite takes."""
    rest = written[whole:]
    return Lost(len(rest), sum(rest))
