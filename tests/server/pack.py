"""Workers of unequal speed around the real coordinator in virtual time, with made-up updates: what matters is when."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from room import Room

from lightning_async.server.members import Member
from lightning_async.wire import messages as m

VECTOR = torch.full((8,), 0.01)


@dataclass
class Runner:
    """A worker that pushes, pulls, computes, and pushes again. `seconds`: of a round, give or take a tenth."""

    name: str
    seconds: float
    version: int = 0
    pushed: int = 0
    accepted: int = 0


class Pack:
    """A run of these workers, named w0, w1, ...; `seconds[i]` is how long worker i computes."""

    def __init__(self, seconds: Sequence[float], seed: int = 0, **config: Any) -> None:
        self.runners = {f"w{i}": Runner(f"w{i}", s) for i, s in enumerate(seconds)}
        self.room = Room(**{"workers": len(seconds)} | config).begin(*self.runners)
        self._rng, self._order = np.random.default_rng(seed), itertools.count()
        self._due: list[tuple[float, int, str]] = []
        for name in self.runners:
            self._plan(name)

    def _plan(self, name: str) -> None:
        lasts = self.runners[name].seconds * float(self._rng.uniform(0.9, 1.1))
        heapq.heappush(self._due, (self.room.now + lasts, next(self._order), name))

    def join(self, name: str, seconds: float) -> None:
        """One more worker, or one that comes back."""
        self.runners[name] = Runner(name, seconds, version=self.room.run.version)
        self.room.hello(name, instance=f"{self.room.now}")
        self._plan(name)

    def leave(self, name: str) -> None:
        """What it is doing is lost."""
        self.room.say(name, m.Leave())
        del self.runners[name]

    def run(self, pushes: int) -> Pack:
        """Go on until that many more updates have been sent."""
        sent = 0
        while sent < pushes:
            self.room.now, _, name = heapq.heappop(self._due)
            runner = self.runners.get(name)
            if runner is None:
                continue
            receipt = self.room.push(name, VECTOR, base=runner.version)
            runner.pushed, runner.accepted, sent = runner.pushed + 1, runner.accepted + receipt.accepted, sent + 1
            runner.version = self.room.run.version
            self.room.mail.clear()
            self._plan(name)
        return self

    @property
    def acceptance(self) -> float:
        """The share of the updates of those who are there that was accepted."""
        return sum(r.accepted for r in self.runners.values()) / max(1, sum(r.pushed for r in self.runners.values()))

    def forget(self) -> Pack:
        """Count from now on."""
        for runner in self.runners.values():
            runner.pushed = runner.accepted = 0
        self.room.run.staleness.counts.clear()
        return self

    def member(self, name: str) -> Member:
        member = self.room.run.members.named(name)
        assert member is not None
        return member
