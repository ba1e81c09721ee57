"""A bad network, written down: wraps a connection or a listener and does to its messages what a script says.

    script = Script(seed=7).drop(0.1).delay(0.05, 0.2).duplicate(0.05).reorder(0.1).corrupt(at=[4]).cut_after(500)
    connection = connection_with(script, transport.connect(url))
    ...
    assert connection.fired["drop"] > 0

Every choice comes from the seed and from a message's number in its direction, so a run repeats. `fired` counts what
really happened: a test that asks for a fault asserts that it fired. Rule of this file: it moves, loses, repeats and
alters messages; it never makes an error up. Messages that are delayed leave when their time has come *and* their owner
calls `send` or `receive`; `clock` decides what time it is.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lightning_async.errors import ConfigError
from lightning_async.transport.base import Connection, Frame, Listener, Traffic

Way = Literal["send", "receive", "both"]
Clock = Callable[[], float]
Kind = Literal["drop", "delay", "duplicate", "reorder", "corrupt", "cut"]

_Parcel = tuple[bytes, list[Frame]]  # peer (empty for a connection), frames
_EARLY_S = 0.002  # a wait that ends this much before its time was ended by a wake


@dataclass(frozen=True)
class Fault:
    """What happens to a message with probability `p`, and to the messages numbered `at` (1, 2, ...) for sure."""

    kind: Kind
    p: float
    at: frozenset[int]
    way: Way
    low_s: float = 0.0
    high_s: float = 0.0


@dataclass(frozen=True)
class Script:
    """A list of faults. Each method gives a new script with one more; `way` is as its wrapper's owner sees it."""

    seed: int = 0
    faults: tuple[Fault, ...] = ()

    def drop(self, p: float = 0.0, *, at: Iterable[int] = (), way: Way = "both") -> Script:
        """Lose messages."""
        return self._with("drop", p, at, way)

    def duplicate(self, p: float = 0.0, *, at: Iterable[int] = (), way: Way = "both") -> Script:
        """Deliver messages twice."""
        return self._with("duplicate", p, at, way)

    def reorder(self, p: float = 0.0, *, at: Iterable[int] = (), way: Way = "both") -> Script:
        """Let messages be overtaken by the next one; when none comes, they go at the end of the next idle wait."""
        return self._with("reorder", p, at, way)

    def corrupt(self, p: float = 0.0, *, at: Iterable[int] = (), way: Way = "both") -> Script:
        """Flip one bit of one frame."""
        return self._with("corrupt", p, at, way)

    def delay(
        self, low_s: float, high_s: float | None = None, p: float = 1.0, *, at: Iterable[int] = (), way: Way = "both"
    ) -> Script:
        """Hold messages back for `low_s` to `high_s`, each its own time: they may overtake each other."""
        made = self._with("delay", p, at, way)
        timed = replace(made.faults[-1], low_s=low_s, high_s=low_s if high_s is None else high_s)
        return replace(made, faults=(*self.faults, timed))

    def cut_after(self, messages: int, *, way: Way = "both") -> Script:
        """After this many messages of a direction nothing passes in it any more, until `heal`."""
        return self._with("cut", 0.0, (messages,), way)

    def _with(self, kind: Kind, p: float, at: Iterable[int], way: Way) -> Script:
        if not 0.0 <= p <= 1.0:
            raise ConfigError(f"{kind} with probability {p}; expected 0 to 1")
        return replace(self, faults=(*self.faults, Fault(kind, p, frozenset(at), way)))


class _Lane:
    """The messages of one direction: what became of them, and those that wait for their time."""

    def __init__(self, script: Script, way: Way, clock: Clock, fired: Counter[str]) -> None:
        self._faults = [
            (fault, random.Random(f"{script.seed}/{way}/{fault.kind}"))  # one stream each: faults do not shift others
            for fault in script.faults
            if fault.way in (way, "both")
        ]
        self._random = random.Random(f"{script.seed}/{way}")
        self._clock = clock
        self._fired = fired
        self._seen = 0
        self._order = itertools.count()
        self._waiting: list[tuple[float, int, _Parcel]] = []
        self._overtaken: list[_Parcel] = []

    def put(self, parcel: _Parcel) -> None:
        self._seen += 1
        overtaken, self._overtaken = self._overtaken, []
        happens = {fault.kind: fault for fault, stream in self._faults if self._happens(fault, stream.random())}
        self._fired.update(happens.keys() if "cut" not in happens else ["cut"])
        if "cut" not in happens and "drop" not in happens:
            self._pass(parcel, happens)
        for late in overtaken:
            self._at(self._clock(), late)

    def take(self) -> _Parcel | None:
        """The next message whose time has come."""
        if self._waiting and self._waiting[0][0] <= self._clock():
            return heapq.heappop(self._waiting)[2]
        return None

    def release(self) -> None:
        """Nobody came to overtake."""
        for late in self._overtaken:
            self._at(self._clock(), late)
        self._overtaken = []

    def next_in_s(self) -> float:
        """Until the next message may go; infinity without one."""
        return max(self._waiting[0][0] - self._clock(), 0.0) if self._waiting else float("inf")

    def heal(self) -> None:
        self._faults = []

    def _happens(self, fault: Fault, drawn: float) -> bool:
        if fault.kind == "cut":
            return self._seen > min(fault.at)
        return drawn < fault.p or self._seen in fault.at

    def _pass(self, parcel: _Parcel, happens: dict[Kind, Fault]) -> None:
        peer, frames = parcel
        if "corrupt" in happens:
            parcel = (peer, self._altered(frames))
        due = self._clock()
        if delay := happens.get("delay"):
            due += self._random.uniform(delay.low_s, delay.high_s)
        if "reorder" in happens:
            self._overtaken.append(parcel)
        else:
            self._at(due, parcel)
        if "duplicate" in happens:
            self._at(due, parcel)

    def _at(self, due: float, parcel: _Parcel) -> None:
        heapq.heappush(self._waiting, (due, next(self._order), parcel))

    def _altered(self, frames: list[Frame]) -> list[Frame]:
        candidates = [index for index, frame in enumerate(frames) if len(frame)]
        if not candidates:
            return frames
        chosen = self._random.choice(candidates)
        altered = bytearray(frames[chosen])
        altered[self._random.randrange(len(altered))] ^= 1 << self._random.randrange(8)
        return [altered if index == chosen else frame for index, frame in enumerate(frames)]


class _Line:
    """Both directions of one wrapped end."""

    def __init__(self, script: Script, clock: Clock, deliver: Callable[[_Parcel], object]) -> None:
        self.fired: Counter[str] = Counter()
        self._up = _Lane(script, "send", clock, self.fired)
        self._down = _Lane(script, "receive", clock, self.fired)
        self._deliver = deliver

    def send(self, parcel: _Parcel) -> None:
        self._up.put(parcel)
        self._flush()

    def receive(self, take: Callable[[float], _Parcel | None], timeout_s: float) -> _Parcel | None:
        """`take` is the wrapped end's receive."""
        ends = time.monotonic() + timeout_s
        while True:
            self._flush()
            if (due := self._down.take()) is not None:
                return due
            left_s = max(ends - time.monotonic(), 0.0)
            wait_s = min(left_s, self._up.next_in_s(), self._down.next_in_s())
            began = time.monotonic()
            arrived = take(wait_s)
            if arrived is not None:
                self._down.put(arrived)
            elif time.monotonic() - began < wait_s - _EARLY_S or wait_s == left_s:
                return self._idle()

    def heal(self) -> None:
        self._up.heal()
        self._down.heal()

    def _idle(self) -> _Parcel | None:
        self._up.release()
        self._flush()
        self._down.release()
        return self._down.take()

    def _flush(self) -> None:
        while (due := self._up.take()) is not None:
            self._deliver(due)


class FaultyConnection(Connection):
    """A connection on a bad network. `fired` counts the faults by kind; after `heal` there are no more."""

    def __init__(self, script: Script, inner: Connection, clock: Clock) -> None:
        self._inner = inner
        self._line = _Line(script, clock, lambda parcel: inner.send(parcel[1]))
        self.fired = self._line.fired
        self.heal = self._line.heal

    def send(self, frames: Sequence[Frame]) -> None:
        self._line.send((b"", list(frames)))

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        parcel = self._line.receive(self._take, timeout_s)
        return None if parcel is None else [memoryview(frame) for frame in parcel[1]]

    def wake(self) -> None:
        self._inner.wake()

    def traffic(self) -> Traffic:
        return self._inner.traffic()

    def close(self) -> None:
        self._inner.close()

    def _take(self, timeout_s: float) -> _Parcel | None:
        frames = self._inner.receive(timeout_s)
        return None if frames is None else (b"", list(frames))


class FaultyListener(Listener):
    """A listener on a bad network; its script sees the messages of all peers in the order of their arrival."""

    def __init__(self, script: Script, inner: Listener, clock: Clock) -> None:
        self.address, self.door = inner.address, inner.door
        self._inner = inner
        self._line = _Line(script, clock, lambda parcel: inner.send(*parcel))
        self.fired = self._line.fired
        self.heal = self._line.heal

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        parcel = self._line.receive(self._take, timeout_s)
        return None if parcel is None else (parcel[0], [memoryview(frame) for frame in parcel[1]])

    def send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        """True: what a bad network loses, its sender does not hear of."""
        self._line.send((peer, list(frames)))
        return True

    def wake(self) -> None:
        self._inner.wake()

    def limit(self, largest_message_bytes: int) -> None:
        self._inner.limit(largest_message_bytes)

    def close(self) -> None:
        self._inner.close()

    def _take(self, timeout_s: float) -> _Parcel | None:
        arrived = self._inner.receive(timeout_s)
        return None if arrived is None else (arrived[0], list(arrived[1]))


def connection_with(script: Script, inner: Connection, clock: Clock = time.monotonic) -> FaultyConnection:
    """`inner`, on the network that `script` describes."""
    return FaultyConnection(script, inner, clock)


def listener_with(script: Script, inner: Listener, clock: Clock = time.monotonic) -> FaultyListener:
    """`inner`, on the network that `script` describes."""
    return FaultyListener(script, inner, clock)
