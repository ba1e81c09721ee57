"""Two numbers in a byte: each + 8, the earlier one in the low half; an odd count ends in a high half of 8, for 0."""

from __future__ import annotations

import numpy as np

from lightning_async.codecs.envelope import Array


def fold(q: Array, out: Array) -> None:
    """Writes q (int8 [n], each in -8..7) to out (uint8 [ceil(n / 2)])."""
    even = q.size // 2
    biased = (q + np.int8(8)).view(np.uint8)
    np.bitwise_or(biased[0 : 2 * even : 2], biased[1::2] << np.uint8(4), out=out[:even])
    if q.size % 2:
        out[even] = (int(q[-1]) + 8) | 8 << 4


def unfold(pairs: Array, q: Array) -> None:
    """Writes the numbers in pairs (uint8 [ceil(n / 2)]) to q (int8 [n])."""
    even = q.size // 2
    q[0 : 2 * even : 2] = (pairs[:even] & np.uint8(15)).view(np.int8) - np.int8(8)
    q[1::2] = (pairs[:even] >> np.uint8(4)).view(np.int8) - np.int8(8)
    if q.size % 2:
        q[-1] = (int(pairs[even]) & 15) - 8
