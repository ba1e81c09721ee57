"""A worker's samples: a sized sampler over the run's shared stream, and which of them have been trained on.

The server leases ranges of positions, the same permutation on every worker says which samples those are. `hand_over`
is told when a batch begins, so that the update with it names what it holds; what was drawn and never trained on (a
loader's processes draw ahead) is drawn again.

An epoch is a pass, or a share. Of a pass a worker takes whatever there is until nothing is left: a fast one takes more,
and what others lose it takes over. Its length is known when the last lease is. A share has an exact length, the data
set's divided by the workers expected, and goes through the passes as they come: for who must know his steps in advance.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator

from torch.utils.data import Sampler

from lightning_async.errors import ProtocolError
from lightning_async.scheduling import Range, permutation
from lightning_async.scheduling.ranges import read, size
from lightning_async.wire.messages import Lease, Ranges
from lightning_async.worker.engine import Engine
from lightning_async.worker.parcels import Ticket

BATCHES_AHEAD = 4  # of the first lease; later ones grow until they last LEASE_S
LEASE_S = 1.0
LOOK_S = 0.2  # how often a worker that is through looks whether others have lost something
SMALLEST_PARTS = 4  # a lease is this part of the quota at most, so that a worker that dies takes little with it


def quota(length: int, workers: int) -> int:
    """A worker's samples in an epoch over `length` samples."""
    return math.ceil(length / max(1, workers))


class LeaseSampler(Sampler[int]):
    """Yields sample indices of one epoch. Its length is exact for a share, and what is expected of a pass.

    Args:
        engine: joined.
        stream: name of the shared stream, one a data set.
        length: samples in the data set; the same on every worker.
        batch_size: of the loader; sizes the first lease (four batches). It and `whole` may be set between epochs.
        shuffle: a new permutation each pass, or the data set's order.
        share: samples of an epoch of this worker; by default its `quota`.
        whole: a batch with fewer samples is not trained on.
        passes: (epoch, of how many) when an epoch is a pass of the run instead of a share; may be set between epochs.
    """

    def __init__(
        self,
        engine: Engine,
        stream: str,
        length: int,
        batch_size: int,
        shuffle: bool,
        share: int | None = None,
        whole: bool = False,
        passes: tuple[int, int] | None = None,
    ) -> None:
        self._engine, self._stream, self._length, self._shuffle = engine, stream, length, shuffle
        self.batch_size, self.whole, self.passes = batch_size, whole, passes
        self._quota = quota(length, engine.workers) if share is None else share
        self._count = max(1, min(length, BATCHES_AHEAD * batch_size))
        self._most = max(self._count, self._quota // SMALLEST_PARTS)
        self._received_at = -math.inf
        self._number = 0
        self._granted: deque[Range] = deque()  # in the order in which they are drawn, until a batch with them begins
        self._indices: deque[int] = deque()
        self._ahead = 0  # samples that were drawn, and are in no batch yet
        self._ticket: Ticket | None = None
        self._order: tuple[int, list[int]] = (-1, [])
        self._seed = 0
        self._upto: int | None = None  # the pass of this epoch, or of the last one
        self.final = False  # whether that is the last pass that this worker is to help with
        self._again = False  # whether the next epoch goes on in that pass
        self._exhausted = False

    def __len__(self) -> int:
        return self._quota

    def __iter__(self) -> Iterator[int]:
        self._rewind()
        if self.passes is None:
            for _ in range(self._quota):
                if not self._look_ahead(1):
                    return
                self._ahead += 1
                yield self._indices.popleft()
            return
        while self._look_ahead(2) or self._indices:
            self._ahead += 1
            yield self._indices.popleft()

    @property
    def last(self) -> bool:
        """Whether the batch that was handed over last is the last one of its pass here."""
        return self.passes is not None and self._exhausted and not self._indices and not self._ahead

    def hand_over(self) -> None:
        """The next batch begins: its samples are in what an optimizer steps on next."""
        count = min(self.batch_size, self._ahead)
        self._ahead -= count
        begun: list[Range] = []
        while count:
            number, start, stop = self._granted.popleft()
            cut = min(stop, start + count)
            begun.append((number, start, cut))
            if cut < stop:
                self._granted.appendleft((number, cut, stop))
            count -= cut - start
        self._engine.holdings.begin(self._stream, begun)

    @property
    def through(self) -> bool:
        """Whether there was nothing more for this worker, at its last lease: its epochs that are passes have ended, or
        a share was cut short because the run takes only so many passes."""
        return self._exhausted if self.passes is None else self.final

    def _ask_for_more(self) -> int:
        """Take what others have left of the pass; what can still come, in samples: with 0 this worker can help no
        more."""
        self._exhausted = False
        reply = self._receive()
        self._again = bool(self._granted)
        return size(self._granted) or reply.out

    def left_over(self, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Of a worker that is `through`: send what is not sent, wait until nothing that others have taken can come
        back, and take what does; whether there is something for one more epoch."""
        engine = self._engine
        engine.flush()
        engine.holdings.end()
        while self._ask_for_more() and not self._again and not engine.stop_asked and not give_up():
            engine.wait(lambda: engine.stop_asked, LOOK_S)
        return self._again and not engine.stop_asked

    def _rewind(self) -> None:
        """An epoch begins with what was drawn in the last one and not trained on."""
        self._indices, self._ahead = deque(), 0
        for row in self._granted:
            self._indices.extend(self._samples(row))
        if not self._again:
            self._upto, self.final = None, False
        self._again, self._exhausted = False, False

    def _look_ahead(self, least: int) -> bool:
        """Whether at least that many samples are at hand, after a wait for a lease if need be."""
        while len(self._indices) < least and not self._exhausted:
            self._ask()
            self._receive()
        if len(self._indices) <= self._count // 2 and not self._exhausted:
            self._ask()
        return len(self._indices) >= least

    def _ask(self) -> None:
        if self._ticket is not None:
            return
        self._number += 1
        epoch, epochs = (None, None) if self.passes is None or self._upto is not None else self.passes
        lease = Lease(
            stream=self._stream,
            length=self._length,
            count=self._count,
            number=self._number,
            holds=[list(row) for row in self._engine.holdings.of(self._stream)],
            spoiled=[list(row) for row in self._engine.holdings.spoiled(self._stream)],
            unstepped=[list(row) for row in self._engine.holdings.unstepped(self._stream)],
            batch=self.batch_size,
            whole=self.whole,
            epoch=epoch,
            epochs=epochs,
            upto=None if self.passes is None else self._upto,
            bytes_per_s=self._engine.bytes_per_s,
        )
        self._ticket = self._engine.ask_later(lease)

    def _receive(self) -> Ranges:
        self._ask()
        assert self._ticket is not None
        reply, _ = self._engine.answer_of(self._ticket)
        self._ticket = None
        self._grow()
        if not isinstance(reply, Ranges):
            raise ProtocolError(f"Lease was answered by {type(reply).__name__}")
        try:
            ranges = [read(row, self._length) for row in reply.ranges]
        except ValueError as error:
            raise ProtocolError(f"a range of the shared stream: {error}") from error
        self._seed, self._exhausted = reply.seed, not ranges
        if self.passes is not None:
            self._upto, self.final = reply.upto, self.final or reply.final
        self._engine.holdings.grant(self._stream, ranges)
        for row in ranges:
            self._granted.append(row)
            self._indices.extend(self._samples(row))
        return reply

    def _grow(self) -> None:
        """The next lease is twice as large when the last one was used up before LEASE_S."""
        now = self._engine.clock()
        if now - self._received_at < LEASE_S:
            self._count = min(2 * self._count, self._most)
        self._received_at = now

    def _samples(self, row: Range) -> list[int]:
        number, start, stop = row
        if self._order[0] != number:
            self._order = (number, permutation(self._length, self._seed, number, self._shuffle).tolist())
        return self._order[1][start:stop]
