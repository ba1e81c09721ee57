"""The checksum of a payload frame (docs/protocol.md, section 6): one sum over 64-bit words, at the speed of a read.

It guards against accidents (truncation, a flipped bit, a frame of another message), not against malice: anyone can
write a frame with a sum of his choice. It does not see words that changed places. Authenticity is the transport's task.
"""

from __future__ import annotations

import numpy as np

MODULUS = 2**63 - 1  # keeps the result inside a signed 64-bit integer
_WORD = 8


def checksum(buffer: bytes | bytearray | memoryview) -> int:
    """((sum of little-endian 64-bit words, the tail padded with zeros, + length) mod 2^64) mod (2^63 - 1).

    Any alignment and length; never negative, so that -1 may say "none". The buffer must be contiguous.
    """
    data = np.frombuffer(buffer, dtype=np.uint8)
    whole = data.size - data.size % _WORD
    words = int(np.add.reduce(data[:whole].view("<u8"))) if whole else 0
    tail = int.from_bytes(data[whole:].tobytes(), "little")
    return (words + tail + data.size) % 2**64 % MODULUS
