"""A worker whose network lets nothing but HTTP pass any more, in the middle of a large update, in virtual time."""

from __future__ import annotations

import contextlib

from town import ROWS, Town

from lightning_async.transport import memory
from lightning_async.transport.base import Connection
from lightning_async.transport.fallback import Fallback
from lightning_async.transport.faults import FaultyConnection, Script, connection_with

PATIENCE_S = 8.0  # with the first way


class Narrowing(Town):
    """Once it is `narrow`, nothing passes the first way, also of connections that are there."""

    narrow = False

    def dial(self) -> Connection:  # type: ignore[override]
        dead = Script().drop(1.0) if self.narrow else Script().delay(0.3)
        first = connection_with(dead, memory.connect(self.address, queue=1000), self.clock)
        self.lines.append(first)
        return Fallback(lambda: first, self._second, ("first", "second"), PATIENCE_S, self.clock)

    def _second(self) -> FaultyConnection:
        self.second = connection_with(Script(), memory.connect(self.address, queue=1000), self.clock)
        return self.second

    def narrows(self) -> None:
        self.narrow = True
        cut = Script().drop(1.0).faults
        for lane in (self.lines[-1]._line._up, self.lines[-1]._line._down):
            never = type("Never", (), {"random": staticmethod(lambda: 0.0)})()
            lane._faults = [(fault, never) for fault in cut]


def test_the_other_way_is_taken_in_the_middle_of_an_update() -> None:
    with contextlib.closing(Narrowing(rows=ROWS)) as place:
        place.begin()
        receipts = place.push(1)
        place.until(lambda: list(place.service._freight.arriving()), 60.0)
        place.narrows()
        place.until(lambda: receipts, 100.0)
        assert receipts[0].accepted
        assert len(place.lines) < 5, "dialled now and then, and not all the time"
