"""The leased samples that a worker holds, from the grant to the receipt of the update that contains them.

    granted -> drawn -> in a batch -> stepped on: in the round -> under way in update n -> accepted: no longer ours

What is not accepted goes with a later update, as the progress does; where the progress is given up, so are they, and
the next Lease says so. All that is held is told with each Lease, so both sides agree also after an answer was lost.

Rule of this file: the thread that trains only. The round itself is the engine's (part.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_async.scheduling import Range
from lightning_async.scheduling.ranges import by_stream, merged, without
from lightning_async.worker.part import Unit


class Holdings:
    """What one worker holds, by stream."""

    def __init__(self) -> None:
        self._held: dict[str, list[Range]] = {}
        self._spoiled: dict[str, list[Range]] = {}
        self._unstepped: dict[str, list[Range]] = {}
        self._batch: list[Unit] = []  # begun, and no optimizer has stepped on it yet
        self._sent: dict[int, list[Unit]] = {}  # sequence number -> samples of updates that may still come back

    def of(self, stream: str) -> list[Range]:
        """Everything of `stream` that is held."""
        return self._held.get(stream, [])

    def spoiled(self, stream: str) -> list[Range]:
        """What of `stream` made an update that was not finite, since this was asked last."""
        return self._spoiled.pop(stream, [])

    def unstepped(self, stream: str) -> list[Range]:
        """What of `stream` was given up by `end`, since this was asked last."""
        return self._unstepped.pop(stream, [])

    def grant(self, stream: str, ranges: Iterable[Range]) -> None:
        """The server has given these."""
        self._held[stream] = merged([*self.of(stream), *ranges])

    def begin(self, stream: str, ranges: Sequence[Range]) -> None:
        """A batch of these samples begins."""
        self._batch += [(stream, row) for row in ranges]

    def stepped(self) -> list[Unit]:
        """An optimizer has stepped: the samples of the batches since the last step, which are in the round now."""
        units, self._batch = self._batch, []
        return units

    def end(self) -> None:
        """No batch follows for now: what no optimizer has stepped on since its batch (a script that accumulates by
        itself, a training step that gave no loss) is given up, so that nobody waits for it."""
        units = self.stepped()
        for stream, row in units:
            self._unstepped.setdefault(stream, []).append(row)
        self._drop(units)

    def send(self, seq: int, units: Sequence[Unit]) -> list[list[object]]:
        """`units` go out with update `seq`; as a message names them."""
        joined = [(stream, row) for stream, own in by_stream(units).items() for row in own]
        if joined:
            self._sent[seq] = joined
        return [[stream, *row] for stream, row in joined]

    def accepted(self, seq: int) -> None:
        """Update `seq` is the server's now."""
        self._drop(self._sent.get(seq, ()))

    def included(self, last: int) -> None:
        """The published parameters hold the updates up to number `last`."""
        self._sent = {seq: units for seq, units in self._sent.items() if seq > last}

    def forgotten(self, after: int, last: int) -> list[Unit]:
        """The server has lost the accepted updates after number `after`, up to `last`; the samples in those that are in
        no version here, whose progress goes with the next update."""
        lost = [seq for seq in self._sent if after < seq <= last]
        return [unit for seq in lost for unit in self.take_back(seq)]

    def take_back(self, seq: int) -> list[Unit]:
        """The progress of update `seq` goes with the next one; the samples in it."""
        units = self._sent.pop(seq, [])
        for stream, row in units:
            self.grant(stream, [row])
        return units

    def give_up(self, seq: int, rest: Sequence[Unit], spoiled: bool) -> None:
        """The progress of update `seq` is thrown away, and `rest` with it; `spoiled`: the update was not finite."""
        units = self._sent.pop(seq, [])
        if spoiled:
            for stream, row in units:
                self._spoiled.setdefault(stream, []).append(row)
        self._drop([*units, *rest])

    def _drop(self, units: Iterable[Unit]) -> None:
        for stream, own in by_stream(units).items():
            self._held[stream] = without(self.of(stream), own)
