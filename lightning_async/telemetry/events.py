"""Events: frozen records of what happened to the run. They decide nothing; sinks write them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Event:
    """Anything that happened; `time_s` is the server's clock."""

    time_s: float


@dataclass(frozen=True, kw_only=True)
class OfWorker(Event):
    """Anything that happened to one worker, by its name."""

    worker: str


@dataclass(frozen=True, kw_only=True)
class Joined(OfWorker):
    """A worker or an observer came in; `again`: the same process, over a new connection."""

    again: bool


@dataclass(frozen=True, kw_only=True)
class Left(OfWorker):
    """It took its leave, was silent for too long, or was counted out: `why`."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Initialised(OfWorker):
    """`worker` gave the run its first parameters, version 0; counted are numbers, not tensors."""

    parameters: int
    buffers: int


@dataclass(frozen=True, kw_only=True)
class Accepted(OfWorker):
    """Update `seq` of `worker`, `staleness` versions old: `steps` local steps on `samples` samples, in `round_s`."""

    seq: int
    staleness: int
    steps: int
    samples: int
    round_s: float
    loss: float | None


@dataclass(frozen=True, kw_only=True)
class Traffic(OfWorker):
    """What has passed a worker's sockets since its process began, framing included, as it counts there itself."""

    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, kw_only=True)
class CodecChanged(OfWorker):
    """A worker's upload codec has several rungs, and its accepted update was of another one than those before."""

    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Refused(OfWorker):
    """An update or a request of `worker` was refused; `reason` is a code of `wire.messages.Reason`."""

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
class Dropped(OfWorker):
    """A filter did not let the accepted update `seq` of `worker` make a step."""

    seq: int
    why: str


@dataclass(frozen=True, kw_only=True)
class RoundSized(OfWorker):
    """The next rounds of `worker` have `after` optimizer steps instead of `before`."""

    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Returned(OfWorker):
    """Samples leased to `worker`, or in an update of it, go back to be trained on by whoever comes: `why`."""

    stream: str
    samples: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Late(OfWorker):
    """A barrier goes on without `worker`, after this long; it waits for it again once it has sent an update."""

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
class Quarantined(OfWorker):
    """From now on the updates of `worker` are refused, until the run is at version `until` or it is pardoned."""

    score: float
    until: int


@dataclass(frozen=True, kw_only=True)
class Released(OfWorker):
    """The quarantine of `worker` is over."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Changed(Event):
    """The owner has changed a value of the run's configuration; both as Python would write them."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Unused(Event):
    """The run ended while accepted updates of `workers`, too few for its rule, waited; they are in no version."""

    workers: tuple[str, ...]
    steps: int


@dataclass(frozen=True, kw_only=True)
class Ended(Event):
    """The run is over; workers learn it from their next answer."""

    why: str
