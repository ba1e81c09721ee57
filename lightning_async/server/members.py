"""Who is in the run: one Member per worker name, kept after it left so that its sequence numbers survive.

A member is a name plus the process that bears it now (`instance`) plus the connection it speaks through (`peer`). A
name whose process is alive cannot be taken; a name whose process has gone silent can.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_async.layout import Layout
from lightning_async.scheduling import Capability, Speed
from lightning_async.server.reputation import Reputation
from lightning_async.staleness import Pace
from lightning_async.telemetry import Ewma, Histogram
from lightning_async.wire.messages import Hello, Ranges, Receipt
from lightning_async.wire.session import State

RECEIPTS_KEPT = 8
MOST_FACTS, LONGEST_FACT = 16, 200


@dataclass
class Member:
    """One worker or observer, as the server sees it. Times are the coordinator's clock, seconds."""

    name: str
    instance: str
    role: str
    group: str
    rank: int
    peer: bytes
    digest: str
    joined_at: float  # when it came the last time
    seen_at: float
    layout: Layout | None = None  # only until the run has one
    state: State = State.NEW
    host: dict[str, Any] = field(default_factory=dict)
    last_seq: int = 0
    included: int = 0  # last sequence number that the current version contains
    included_of: dict[int, int] = field(default_factory=dict)  # the same for each group of updates
    receipts: OrderedDict[int, Receipt] = field(default_factory=OrderedDict)
    granted: dict[str, tuple[int, Ranges]] = field(
        default_factory=dict
    )  # stream -> number and answer of its last Lease
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    samples: int = 0
    last_samples: int = 0
    staleness: Histogram = field(default_factory=Histogram)
    round_s: Ewma = field(default_factory=Ewma)  # as the worker says
    pace: Pace = field(default_factory=Pace)  # as the server sees
    speed: Speed = field(default_factory=Speed)  # as the worker says
    round_steps: int = 0  # of its next rounds, where they are fitted to each worker; 0 before its first update
    lost: int = 0  # samples that it had leased and that came back because of it
    learnt: list[Any] = field(default_factory=list)  # what the predictor `learnt_by` remembers of it
    learnt_by: str = ""
    bytes_per_s: float = 0.0  # of its line, as it has measured it
    machine: Capability = field(default_factory=Capability)
    loss: float | None = None
    hyper: dict[int, list[Any]] = field(default_factory=dict)
    sent_bytes: int = 0  # as the worker counts at its own socket
    received_bytes: int = 0
    codec: str = ""  # the rung of its last accepted update, where the upload codec has several
    reputation: Reputation = field(default_factory=Reputation)
    barred_until: int | None = None  # the version at which its quarantine ends by itself
    barred: int = 0  # how often it was quarantined
    told: int = -1  # first version that it was given since the server was restored
    before_s: float = 0.0  # that it was here in its earlier stays

    @property
    def alive(self) -> bool:
        return self.state not in (State.NEW, State.GONE)

    @property
    def quarantined(self) -> bool:
        """Whether its updates are refused for now."""
        return self.barred_until is not None

    @property
    def counts(self) -> bool:
        """Whether a quorum waits for it."""
        return self.alive and self.role == "worker"

    def seconds(self, now: float) -> float:
        """How long it has been in the run, its absences not counted."""
        return self.before_s + (now - self.joined_at if self.alive else 0.0)

    def keep(self, receipt: Receipt) -> None:
        self.receipts[receipt.seq] = receipt
        while len(self.receipts) > RECEIPTS_KEPT:
            self.receipts.popitem(last=False)


class Members:
    """All members by name, and the live ones by peer."""

    def __init__(self) -> None:
        self._by_name: dict[str, Member] = {}
        self._by_peer: dict[bytes, Member] = {}
        self._workers: list[Member] | None = None  # made when somebody asks, until one comes or goes

    def __iter__(self) -> Iterator[Member]:
        return iter(self._by_name.values())

    def of(self, peer: bytes) -> Member | None:
        return self._by_peer.get(peer)

    def named(self, name: str) -> Member | None:
        return self._by_name.get(name)

    def workers(self) -> list[Member]:
        """The live workers, in the order in which their names first came; not to be changed."""
        if self._workers is None:
            self._workers = [member for member in self if member.counts]
        return self._workers

    def voters(self) -> list[Member]:
        """The live workers whose updates are taken: those that a quorum is counted from."""
        return [member for member in self.workers() if member.barred_until is None]

    def has_room(self, most: int) -> bool:
        """Whether a new name may come. At the bound, one that has gone and never gave anything is forgotten for it."""
        if len(self._by_name) < most:
            return True
        idle = next((m.name for m in self if m.state is State.GONE and not m.accepted), None)
        if idle is not None:
            del self._by_name[idle]
        return idle is not None

    def remember(self, member: Member) -> None:
        """Put a member of an earlier life of this run back; it is away until it says Hello."""
        self._by_name[member.name], self._workers = member, None

    def revive(self, member: Member) -> None:
        """A remembered member is not away: it speaks through its peer."""
        self._by_peer[member.peer], self._workers = member, None

    def enter(self, hello: Hello, peer: bytes, now: float) -> Member:
        """The member that `hello` makes or brings back; its numbers continue where they were."""
        self._workers = None
        member = self._by_name.get(hello.worker)
        if member is None:
            member = Member(
                hello.worker, hello.instance, hello.role, hello.group, hello.rank, peer, hello.digest, now, now
            )
            self._by_name[hello.worker] = member
        self._by_peer.pop(member.peer, None)
        if not member.alive:
            member.joined_at, member.state = now, State.JOINED
        if member.instance != hello.instance:
            member.receipts.clear()
            member.granted.clear()
            member.pace = member.pace.away()
        member.instance, member.role, member.group, member.rank = hello.instance, hello.role, hello.group, hello.rank
        member.peer, member.digest, member.seen_at, member.host = peer, hello.digest, now, _facts(hello.host)
        member.machine = Capability.read(hello.host)
        self._by_peer[peer] = member
        return member

    def leave(self, member: Member) -> None:
        """It goes; its numbers and its updates stay. What was silence at the end is no part of its stay."""
        member.before_s = member.seconds(member.seen_at)
        member.state, self._workers = State.GONE, None
        self._by_peer.pop(member.peer, None)


def _facts(host: Mapping[str, Any]) -> dict[str, str]:
    """What a worker says about its machine, cut to a size that a status of many workers can hold."""
    return {key[:LONGEST_FACT]: str(value)[:LONGEST_FACT] for key, value in list(host.items())[:MOST_FACTS]}
