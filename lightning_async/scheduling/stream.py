"""The shared stream of samples: pass after pass over one data set, cut into ranges that no two workers share.

The server hands out ranges of positions; which sample stands at a position of a pass follows on every worker from
the same permutation of (seed, pass), so a lease is three small integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Range = tuple[int, int, int]  # (pass, start, stop), half open


@dataclass(frozen=True)
class Stream:
    """An endless stream over `length` samples; `position` is where the next range starts, counted over all passes."""

    length: int
    position: int = 0

    def take(self, count: int) -> tuple[list[Range], Stream]:
        """Ranges that hold the next `count` samples, cut at the end of each pass, and the stream after them."""
        ranges, position, stop = [], self.position, self.position + count
        while position < stop:
            number, start = divmod(position, self.length)
            end = min(self.length, start + stop - position)
            ranges.append((number, start, end))
            position += end - start
        return ranges, Stream(self.length, position)


def permutation(length: int, seed: int, number: int, shuffle: bool = True) -> Tensor:
    """The order of pass `number`: int64 [length], the same on every worker and every machine."""
    if not shuffle:
        return torch.arange(length, dtype=torch.int64)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
    return torch.randperm(length, generator=generator, dtype=torch.int64)
