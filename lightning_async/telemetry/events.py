"""Events: frozen records of what happened to the run. They decide nothing; sinks write them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Event:
    """Anything that happened; `time_s` is the server's clock."""

    time_s: float


@dataclass(frozen=True, kw_only=True)
class Joined(Event):
    worker: str
    again: bool


@dataclass(frozen=True, kw_only=True)
class Left(Event):
    worker: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Initialised(Event):
    worker: str
    parameters: int
    buffers: int


@dataclass(frozen=True, kw_only=True)
class Accepted(Event):
    worker: str
    seq: int
    staleness: int
    steps: int
    samples: int
    round_s: float
    loss: float | None


@dataclass(frozen=True, kw_only=True)
class Traffic(Event):
    """What has passed a worker's sockets since its process began, framing included, as it counts there itself."""

    worker: str
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, kw_only=True)
class CodecChanged(Event):
    """A worker's upload codec has several rungs, and its accepted update was of another one than those before."""

    worker: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Refused(Event):
    worker: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Stepped(Event):
    """The outer optimizer made `version` from the updates of `workers`."""

    version: int
    workers: tuple[str, ...]
    staleness: tuple[int, ...]
    steps_total: int


@dataclass(frozen=True, kw_only=True)
class Dropped(Event):
    """A filter did not let the accepted update `seq` of `worker` make a step."""

    worker: str
    seq: int
    why: str


@dataclass(frozen=True, kw_only=True)
class RoundSized(Event):
    """The next rounds of `worker` have `after` optimizer steps instead of `before`."""

    worker: str
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Returned(Event):
    """Samples leased to `worker`, or in an update of it, go back to be trained on by whoever comes: `why`."""

    worker: str
    stream: str
    samples: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Late(Event):
    """A barrier goes on without `worker`, after this long; it waits for it again once it has sent an update."""

    worker: str
    waited_s: float


@dataclass(frozen=True, kw_only=True)
class Advised(Event):
    """What was configured works, and something else would work better."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """A quorum or a rule's condition cannot be met by the workers that are there; they go on locally."""

    have: int
    need: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Enough(Event):
    """The wait that `Waiting` told of is over."""

    have: int
    need: int


@dataclass(frozen=True, kw_only=True)
class Judged(Event):
    """How the updates of `version` lay to its aggregate, in the order of `workers`, and each worker's score since."""

    version: int
    workers: tuple[str, ...]
    influence: tuple[float, ...]
    distance_z: tuple[float, ...]
    cosine: tuple[float, ...]
    score: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Copied(Event):
    """The update of `worker` in `version` had the direction of another worker's, `like`: a copy, or one person."""

    version: int
    worker: str
    like: str
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Quarantined(Event):
    """From now on the updates of `worker` are refused, until the run is at version `until` or it is pardoned."""

    worker: str
    score: float
    until: int


@dataclass(frozen=True, kw_only=True)
class Released(Event):
    worker: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Unused(Event):
    """The run ended while accepted updates of `workers`, too few for its rule, waited; they are in no version."""

    workers: tuple[str, ...]
    steps: int


@dataclass(frozen=True, kw_only=True)
class Ended(Event):
    why: str
