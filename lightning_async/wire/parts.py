"""How a large message travels in chunks: four messages beside requests and replies (docs/protocol.md, section 14).

Each has the request id of the message that it is a part of. Nothing answers them but each other. Rule of this file: as
in wire/messages.py, no behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A message comes in chunks. Payload: its header, as it would travel whole."""

    transfer: str  # which message of this sender
    sizes: list[int]  # bytes of its payload frames
    round: int = 0


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Bytes of the payload frames, which stand one after the other. Payload: these bytes."""

    transfer: str
    offset: int  # of the first one
    digest: str  # BLAKE2b, 16 bytes, in hexadecimal digits
    round: int = 0


@dataclass(frozen=True, kw_only=True)
class Have:
    """What the receiver has of a message: its first `offset` bytes."""

    transfer: str
    offset: int  # -1: nothing is known of it
    round: int = 0
    missing: bool = False  # what comes now is not what follows


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Nothing more of this message will come."""

    transfer: str


Part = Offer | Chunk | Have | Drop
PARTS: tuple[type, ...] = (Offer, Chunk, Have, Drop)
