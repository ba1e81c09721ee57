"""The ledger of one data set: where every sample of every pass is, so that each is applied once.

    fresh -> leased to a worker -> in an accepted update that waits for its step -> applied
      ^--------- free: came back <--------'--------------------'

A pass is the data set once, in an order that all compute alike; a position in it stands for a sample. The ledger hands
out positions (first what has come back, then fresh ones, pass after pass) and books them when an update that holds them
is accepted and when a version is made of it. Whatever else becomes of them, they come back and are handed out again:
the worker died, left or took too long, its update was thrown away, or a filter dropped it. A position that was handed
out again belongs to its new holder alone, so an update of the old one with it is not accepted.
What comes back again and again because no update with it can be used (it makes NaN) is set aside in the end.

Rule of this file: it has no clock and knows no messages; positions are booked in whole ranges, so its size follows the
number of leases, not that of samples.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from lightning_async.scheduling.held import Held, Unit, common, cut_out, joined, read_held
from lightning_async.scheduling.ranges import Range, merged, size, without

WORN_OUT = 8  # how much wear sets a range aside
MOST_PIECES = 4096  # of one unit, so that whoever tears the books into crumbs makes no lease that cannot be said
COSTS_KEPT = 32
PLAIN = ("length", "position", "passes", "applied", "base")


@dataclass
class Ledger:
    """One data set of `length` samples; `position` is the first that nobody has had, counted over all passes."""

    length: int
    position: int = 0
    free: list[Held] = field(default_factory=list)
    leased: dict[str, list[Held]] = field(default_factory=dict)
    waiting: dict[str, list[Held]] = field(default_factory=dict)
    booked: dict[int, int] = field(default_factory=dict)  # of passes that are not complete: positions that are done
    passes: int = 0  # complete ones
    applied: int = 0
    aside: list[Range] = field(default_factory=list)
    returned: Counter[str] = field(default_factory=Counter)  # why -> samples
    base: int = 0  # the pass that is epoch 0 of those who train by passes now
    least: dict[str, int] = field(default_factory=dict)  # worker -> fewer samples are of no use to it
    fits: list[str] = field(default_factory=list)  # the workers that do
    asked: dict[str, float] = field(default_factory=dict)  # worker -> when it asked for a lease last
    # [why, worker, pass, start, stop]
    costs: deque[list[Any]] = field(default_factory=lambda: deque(maxlen=COSTS_KEPT))

    @classmethod
    def restored(cls, values: Mapping[str, Any] | Sequence[int]) -> Ledger:
        """The ledger that `dump` described; or a stream of an older version, [length, position], whose leases were
        final."""
        if not isinstance(values, Mapping):
            length, position = values
            done, rest = divmod(position, length)
            return cls(length, position, booked={done: rest} if rest else {}, passes=done, applied=position)
        return cls(
            leased={worker: read_held(own) for worker, own in values["leased"].items()},
            waiting={worker: read_held(own) for worker, own in values["waiting"].items()},
            free=read_held(values["free"]),
            booked=dict(values["booked"]),
            fits=list(values["fits"]),
            least=dict(values.get("least", {})),
            asked=dict(values["asked"]),
            aside=[(a, b, c) for a, b, c in values["aside"]],
            returned=Counter(values["returned"]),
            costs=deque(values["costs"], maxlen=COSTS_KEPT),
            **{name: values[name] for name in PLAIN if name in values},
        )

    @property
    def newest(self) -> int:
        """The pass in which the next fresh position is."""
        return self.position // self.length

    def held(self, worker: str) -> int:
        """Samples that `worker` has a lease on."""
        return size(held.range for held in self.leased.get(worker, ()))

    def out(self, upto: int | None, but: str = "") -> int:
        """Samples of the passes up to `upto` (None: all) that are leased to others than `but`, so may come back."""
        held = (held.range for name, own in self.leased.items() if name != but for held in own)
        return size(row for row in held if upto is None or row[0] <= upto)

    def left(self, upto: int) -> int:
        """Samples of the passes up to `upto` that can be handed out now."""
        return max(0, (upto + 1) * self.length - self.position) + size(h.range for h in self.free if h.range[0] <= upto)

    def through(self, passes: int) -> bool:
        """Whether so many passes are applied, but for so few samples that nobody who trains can use them."""
        least = min(self.least.values(), default=1)
        under_way = (held for books in (self.leased, self.waiting) for own in books.values() for held in own)
        return self.left(passes - 1) < least and not any(held.range[0] < passes for held in under_way)

    def epoch(self, worker: str, number: int, of: int) -> tuple[int, bool]:
        """(the pass that epoch `number` of `of` of this worker goes up to, whether it is its last one).

        Who comes first begins with what is left of the last pass, if that is of use to it. Who comes while others
        train helps them with the pass that they are at, and ends with them.
        """
        at = self.newest
        if not self.fits:
            at = self._begun(self.least.get(worker, 1))
            self.base = at - number
        if worker not in self.fits:
            self.fits.append(worker)
        last, at = self.base + of - 1, max(self.base + number, at)
        return min(last, at), at >= last

    def _begun(self, least: int) -> int:
        """The pass that was handed out last, or the first after it up to which `least` samples are left."""
        last = max(0, self.position - 1) // self.length
        return next(number for number in itertools.count(last) if self.left(number) >= least)

    def units(self, count: int, most: int, upto: int | None = None, apart: bool = False) -> list[Unit]:
        """What can be handed out, cut into units of `count` samples, at most `most` of them; the last may be smaller.

        In order: the first one holds what has waited longest. `apart`: what came back separately is not put together,
        so such a unit may be smaller; so may one of MOST_PIECES."""
        found: list[Unit] = []
        pieces: list[Held] = []
        room = count
        for piece in self._pool(upto):
            if apart and pieces:
                found.append(Unit(tuple(pieces)))
                pieces, room = [], count
                if len(found) == most:
                    return found
            number, start, stop = piece.range
            while start < stop:
                end = min(stop, start + room)
                pieces.append(piece.part((number, start, end)))
                room, start = room - (end - start), end
                if room == 0 or len(pieces) == MOST_PIECES:
                    found.append(Unit(tuple(pieces)))
                    if len(found) == most:
                        return found
                    pieces, room = [], count
        return found + ([Unit(tuple(pieces))] if pieces else [])

    def _pool(self, upto: int | None) -> Iterator[Held]:
        """Everything that can be handed out, in order; without `upto` it has no end."""
        for held in self.free:
            if upto is None or held.range[0] <= upto:
                yield held
        position = self.position
        while upto is None or position < (upto + 1) * self.length:
            number, start = divmod(position, self.length)
            yield Held((number, start, self.length))
            position += self.length - start

    def lease(self, worker: str, unit: Unit, now: float) -> list[Range]:
        """Hand out `unit`, one of `units`."""
        self.free = cut_out(self.free, unit.ranges)
        for number, start, stop in unit.ranges:
            if number * self.length + start >= self.position:
                self._skip_to(number * self.length + start)
                self.position = number * self.length + stop
        self.leased.setdefault(worker, []).extend(replace(piece, at=now) for piece in unit.pieces)
        return merged(unit.ranges)

    def _skip_to(self, position: int) -> None:
        """Fresh positions before the unit that was chosen can be handed out by themselves from now on."""
        while self.position < position:
            number, start = divmod(self.position, self.length)
            stop = min(self.length, start + position - self.position)
            self._put_back([Held((number, start, stop))])
            self.position += stop - start

    def missing(self, worker: str, ranges: Sequence[Range]) -> list[Range]:
        """What of `ranges` an update of `worker` must not hold: it is somebody else's, or done. Free ones are its."""
        beyond = [row for row in ranges if row[0] * self.length + row[2] > self.position]
        return without(ranges, [held.range for held in (*self.leased.get(worker, ()), *self.free)]) + beyond

    def claim(self, worker: str, ranges: Sequence[Range], now: float) -> None:
        """An update of `worker` with `ranges` was accepted; nothing of them is `missing`."""
        taken = self._take(self.leased, worker, ranges)
        again = without(ranges, [held.range for held in taken])
        taken += common(self.free, again)
        self.free = cut_out(self.free, again)
        self.waiting.setdefault(worker, []).extend(taken)

    def apply(self, worker: str, ranges: Sequence[Range]) -> None:
        """A version was made of an accepted update with `ranges`."""
        self._settle(self._take(self.waiting, worker, ranges))
        self.applied += size(ranges)

    def drop(self, worker: str, ranges: Sequence[Range], why: str, wear: int) -> None:
        """An accepted update with `ranges` made no version."""
        self._return(worker, self._take(self.waiting, worker, ranges), why, wear)

    def keep(self, worker: str, ranges: Sequence[Range], why: str, now: float) -> list[Range]:
        """`worker` holds just `ranges`: what came back meanwhile and nobody has taken is its again, so that it does not
        get it twice; the rest of its leases comes back, and is returned."""
        again = common(self.free, ranges)
        self.free = cut_out(self.free, ranges)
        if again:
            self.leased.setdefault(worker, []).extend(replace(held, at=now) for held in again)
        gone = without([held.range for held in self.leased.get(worker, ())], ranges)
        return self.give_back(worker, gone, why)

    def give_back(self, worker: str, ranges: Sequence[Range], why: str, wear: int = 0) -> list[Range]:
        """What `worker` has of `ranges` comes back; which that is."""
        taken = self._take(self.leased, worker, ranges)
        self._return(worker, taken, why, wear)
        return [held.range for held in taken]

    def release(self, worker: str, why: str) -> list[Range]:
        """`worker` trains no more: everything leased to it comes back; what that is."""
        self.fits = [other for other in self.fits if other != worker]
        self.asked.pop(worker, None)
        self.least.pop(worker, None)
        return self.give_back(worker, [held.range for held in self.leased.get(worker, ())], why)

    def expire(self, overdue: Callable[[str, Held], bool], why: str) -> list[tuple[str, list[Range]]]:
        """What of the passes that have nothing fresh is overdue comes back: (worker, ranges)."""
        late: list[tuple[str, list[Range]]] = []
        for worker, own in self.leased.items():
            if rows := [held.range for held in own if held.range[0] < self.newest and overdue(worker, held)]:
                late.append((worker, rows))
        return [(worker, self.give_back(worker, rows, why)) for worker, rows in late]

    def delayed(self, worker: str, ranges: Sequence[Range], why: str) -> None:
        """An update with `ranges` was refused; they stay with `worker`, whose next one may hold them."""
        self._note(worker, ranges, why)

    def touch(self, now: float) -> None:
        """Every lease begins at `now`: the clock is another one."""
        self.asked = dict.fromkeys(self.asked, now)
        self.leased = {name: [replace(held, at=now) for held in own] for name, own in self.leased.items()}

    def _take(self, books: dict[str, list[Held]], worker: str, ranges: Sequence[Range]) -> list[Held]:
        own = books.pop(worker, [])
        taken, left = common(own, ranges), cut_out(own, ranges)
        if left:
            books[worker] = left
        return taken

    def _return(self, worker: str, taken: Sequence[Held], why: str, wear: int) -> None:
        self._note(worker, [held.range for held in taken], why)
        worn = [held for held in taken if held.wear + wear >= WORN_OUT]
        self.aside = merged([*self.aside, *(held.range for held in worn)])
        self._settle(worn)
        self._put_back([Held(h.range, 0.0, worker, h.wear + wear) for h in taken if h.wear + wear < WORN_OUT])

    def _note(self, worker: str, ranges: Sequence[Range], why: str) -> None:
        if ranges:
            self.returned[why] += size(ranges)
        self.costs.extend([why, worker, *row] for row in merged(ranges))

    def _put_back(self, back: Sequence[Held]) -> None:
        self.free = joined(sorted([*self.free, *back], key=lambda held: held.range))

    def _settle(self, taken: Iterable[Held]) -> None:
        for held in taken:
            number = held.range[0]
            self.booked[number] = self.booked.get(number, 0) + size([held.range])
            if self.booked[number] == self.length:
                del self.booked[number]
                self.passes += 1

    def state(self) -> dict[str, Any]:
        """For `status`. Samples; `pass` is the one that is being handed out, `cost` what came back last and why."""
        return {
            "length": self.length,
            "position": self.position,
            "pass": self.newest,
            "passes": self.passes,
            "applied": self.applied,
            "leased": self.out(None),
            "waiting": size(held.range for own in self.waiting.values() for held in own),
            "free": size(held.range for held in self.free),
            "aside": size(self.aside),
            "unfinished": {str(number): self.length - done for number, done in sorted(self.booked.items())},
            "returned": dict(self.returned),
            "cost": [list(row) for row in self.costs],
            "held": {worker: self.held(worker) for worker in self.leased},
        }

    def dump(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **{name: getattr(self, name) for name in PLAIN},
            "free": [astuple(held) for held in self.free],
            "leased": {worker: [astuple(held) for held in own] for worker, own in self.leased.items()},
            "waiting": {worker: [astuple(held) for held in own] for worker, own in self.waiting.items()},
            "booked": [[number, done] for number, done in self.booked.items()],
            "fits": list(self.fits),
            "least": dict(self.least),
            "asked": dict(self.asked),
            "aside": self.aside,
            "returned": dict(self.returned),
            "costs": [list(row) for row in self.costs],
        }
