"""A share of the samples: a sized sampler over the run's shared stream.

The server hands out ranges of positions, the same permutation on every worker says which samples those are, so no two
workers of a run train on the same sample of a pass. Each worker's epoch is its quota: the data set's length divided by
the workers expected. A fast worker is through with its quota sooner; ranges are never held back for a slow one.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator

from torch.utils.data import Sampler

from lightning_async.errors import ProtocolError
from lightning_async.scheduling import permutation
from lightning_async.wire.messages import Lease, Ranges
from lightning_async.worker.engine import Engine
from lightning_async.worker.parcels import Ticket

BATCHES_AHEAD = 4  # of the first lease; later ones grow until they last LEASE_S
LEASE_S = 1.0
SMALLEST_PARTS = 4  # a lease is this part of the quota at most, so that a worker that dies takes little with it


def quota(length: int, workers: int) -> int:
    """A worker's samples in an epoch over `length` samples."""
    return math.ceil(length / max(1, workers))


class LeaseSampler(Sampler[int]):
    """Yields sample indices of one epoch's quota. Its length is exact, which fractions of an epoch rely on.

    Args:
        engine: joined.
        stream: name of the shared stream, one a data set.
        length: samples in the data set; the same on every worker.
        batch_size: sizes the first lease (four batches).
        shuffle: a new permutation each pass, or the data set's order.
        share: samples of an epoch of this worker; by default its `quota`.
    """

    def __init__(
        self, engine: Engine, stream: str, length: int, batch_size: int, shuffle: bool, share: int | None = None
    ) -> None:
        self._engine, self._stream, self._length, self._shuffle = engine, stream, length, shuffle
        self._quota = quota(length, engine.workers) if share is None else share
        self._count = max(1, min(length, BATCHES_AHEAD * batch_size))
        self._most = max(self._count, self._quota // SMALLEST_PARTS)
        self._received_at = -math.inf
        self._indices: deque[int] = deque()
        self._ticket: Ticket | None = None
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self._quota

    def __iter__(self) -> Iterator[int]:
        for _ in range(self._quota):
            if len(self._indices) <= self._count // 2 and self._ticket is None:
                self._ticket = self._engine.ask_later(
                    Lease(stream=self._stream, length=self._length, count=self._count)
                )
            if not self._indices:
                self._receive()
            yield self._indices.popleft()

    def _receive(self) -> None:
        assert self._ticket is not None
        reply, _ = self._engine.answer_of(self._ticket)
        self._ticket = None
        self._grow()
        if not isinstance(reply, Ranges) or not reply.ranges:
            raise ProtocolError(f"Lease was answered by {type(reply).__name__}")
        for row in reply.ranges:
            self._indices.extend(self._samples(row, reply.seed))

    def _grow(self) -> None:
        """The next lease is twice as large when the last one was used up before LEASE_S."""
        now = time.monotonic()
        if now - self._received_at < LEASE_S:
            self._count = min(2 * self._count, self._most)
        self._received_at = now

    def _samples(self, row: object, seed: int) -> list[int]:
        match row:
            case [int(number), int(start), int(stop)] if 0 <= start < stop <= self._length and number >= 0:
                if self._order[0] != number:
                    self._order = (number, permutation(self._length, seed, number, self._shuffle).tolist())
                return self._order[1][start:stop]
        raise ProtocolError(f"a range of the shared stream must be [pass, start, stop]; got {str(row)[:60]}")
