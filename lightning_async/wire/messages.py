"""What the two sides say to each other: one frozen dataclass a message (docs/protocol.md, section 3).

A message is the small, typed part; vectors travel beside it as raw frames (`wire.frames.Envelope.payload`) and are
named in each docstring. Rule of this file: no behaviour, no I/O, no numbers that are not checked by `wire.frames`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from lightning_async.wire.parts import Part
from lightning_async.wire.reasons import Reason as Reason


@dataclass(frozen=True, kw_only=True)
class Hello:
    """Join, or join again. `instance` is new in each process, so a returning worker differs from a namesake."""

    worker: str
    instance: str
    role: str = "worker"  # "worker" or "observer"
    tensors: list[Any] = field(default_factory=list)  # layout manifest: [name, shape, dtype, kind] each
    digest: str = ""
    claims: dict[str, str] = field(default_factory=dict)  # arguments the user gave, to be compared with the run's
    group: str = ""  # launch group: processes started by one script
    rank: int = 0  # rank inside the launch group
    host: dict[str, Any] = field(default_factory=dict)  # package versions, device; for status only
    chunks: bool = False  # large messages may come in chunks (wire/parts.py)


@dataclass(frozen=True, kw_only=True)
class Init:
    """First parameters of a run. Payload: parameters float32 [d], buffers float32 [b]."""

    digest: str
    optimizers: list[Any] = field(default_factory=list)  # gradient mode: one record per optimizer of the user


@dataclass(frozen=True, kw_only=True)
class Push:
    """An update. Payload: the encoded vector, buffers float32 [b] (empty when the layout has none or group > 0)."""

    seq: int  # 1, 2, 3, ... per worker
    base: int  # version the round started from
    digest: str
    group: int = 0  # gradient mode: index of the optimizer; with fragments: of the piece
    present: list[int] | None = None  # gradient mode: indices of the tensors that have a gradient
    samples: int = 1
    steps: int = 1  # local optimizer steps in the round
    round_s: float = 0.0
    step_s: float = 0.0  # of a local step, waits not counted; 0 when it was not measured
    exchange_s: float = 0.0  # from sending the last update to having the parameters after it; 0: not measured
    loss: float | None = None
    hyper: list[Any] = field(default_factory=list)  # gradient mode: per parameter group {name: [value, initial]}
    have: int | None = None  # version already held, when the Receipt is to bring what is newer
    units: list[Any] = field(default_factory=list)  # [stream, pass, start, stop]: leased samples that are in the round


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Ask for the published parameters. The answer waits up to `wait_s` for a version newer than `have`."""

    have: int = -1  # version already held; -1 for none
    wait_s: float = 0.0
    packed: bool = False  # a snapshot may come in fewer bytes, to be unpacked


@dataclass(frozen=True, kw_only=True)
class Beat:
    """I am alive."""

    sent_bytes: int = 0  # counted at the worker's socket since it started
    received_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Leave:
    """I go; what I pushed stays."""

    why: str = ""
    sent_bytes: int = 0  # as in Beat, this message not counted
    received_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Ask for `count` samples of the shared stream over a data set of `length` samples, and say what is still held."""

    stream: str
    length: int
    count: int
    number: int = 0  # 1, 2, 3, ... per worker and stream; a repeated one gets the first answer again. 0: not numbered
    holds: list[Any] | None = None  # [pass, start, stop]: all that this worker still holds; the rest goes back
    spoiled: list[Any] = field(default_factory=list)  # what goes back because its update was not finite
    unstepped: list[Any] = field(default_factory=list)  # what goes back because no step has followed its batch
    batch: int = 1  # samples in a batch of this worker; leases are whole batches where the pass has that many
    whole: bool = False  # less than a batch is of no use to this worker
    epoch: int | None = None  # begins, of `epochs` that are passes of the run; null: any pass
    epochs: int | None = None
    upto: int | None = None  # such an epoch goes on: nothing of a later pass
    bytes_per_s: float = 0.0  # of this worker's line, as it has measured it; 0: not yet


@dataclass(frozen=True, kw_only=True)
class Share:
    """Offer a value for `key` (first offer wins), or only read it (`value` None)."""

    key: str
    value: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Ask for the state of the outer optimizer, for a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Put a checkpoint's outer state back; only the worker that sent Init may, and only before the first update.

    Payload: one frame per key, the tensor's bytes.
    """

    keys: list[str]
    shapes: list[Any]
    dtypes: list[str]


@dataclass(frozen=True, kw_only=True)
class Status:
    """Ask for the run's state; needs no join."""


@dataclass(frozen=True, kw_only=True)
class Pardon:
    """The server's owner ends a worker's quarantine; needs no join."""

    worker: str
    token: str  # from the owner's file in the server's state_dir


@dataclass(frozen=True, kw_only=True)
class Enrol:
    """Put the key of this connection onto the server's list, as an invitation allows; needs no join."""

    token: str
    name: str = ""  # wished for, where the invitation names none


@dataclass(frozen=True, kw_only=True)
class Order:
    """An order of the server's owner: "stop", "snapshot", "pardon", "revoke", "change"; needs no join."""

    what: str
    name: str = ""  # pardon, revoke: whom
    token: str = ""  # from the owner's file in the server's state_dir; an owner's key needs none
    values: dict[str, Any] = field(default_factory=dict)  # change: name -> value, of the run's configuration


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Measure this line; needs no join, and leaves no trace in the run. Payload: at most one frame, ignored."""

    down_bytes: int = 0  # how many the answer is to bring
    tensors: list[Any] = field(default_factory=list)  # a manifest as in Hello, to be compared with the run's


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """You are in."""

    run: str
    version: int  # -1: no parameters yet
    last_seq: int
    config: dict[str, Any]
    initialise: bool  # you are asked to send Init
    workers: int  # expected or live workers, whichever is more; sizes a worker's share of an epoch
    beat_s: float
    run_id: str = ""  # random, made when the run was born
    round_steps: int = 0  # of your rounds, if you have been here before; 0: as configured
    chunks: bool = False  # as in Hello, of the server


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Not done, and why. Sent for any request but Push, whose refusal is a Receipt."""

    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The answer to Push number `seq`; asking again gets the same receipt. Payload: of the Params in `news`."""

    seq: int
    accepted: bool
    version: int
    staleness: int = 0
    reason: str = ""
    detail: str = ""
    stop: bool = False  # the run is over: end training
    round_steps: int = 0  # of your next rounds; 0: as configured
    news: dict[str, Any] | None = None  # the fields of a Params, for a Push that named what it has


@dataclass(frozen=True, kw_only=True)
class Params:
    """Published parameters at `version`. Payload by `form`: snapshot: parameters [d], buffers [b]; packed: the same
    with the parameters packed; deltas: one encoded delta per version after `base`, then buffers [b]; unchanged: none.
    With fragments a delta is of one piece, and pieces: float32 values of those that have changed, then buffers [b].
    """

    form: str
    version: int
    base: int = -1
    included: int = 0  # last sequence number of this worker that `version` contains
    included_of: list[int] = field(default_factory=list)  # with fragments: the same for each piece
    pieces: list[int] = field(default_factory=list)  # with fragments: which piece each delta, or frame of values, is of
    digest: int = -1  # checksum of the parameters at `version`; -1 when not computed for it
    stop: bool = False


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Index ranges [pass, start, stop] of the shared stream, half open. Without any there is nothing for now."""

    ranges: list[Any]
    seed: int
    upto: int | None = None  # the pass that this epoch goes up to
    final: bool = False  # it is the last one of the `epochs` that were asked for
    out: int = 0  # samples up to there that others hold, and may come back


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The value that `key` has now."""

    key: str
    value: str | None


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Answer to Fetch. Payload: one frame per key, the tensor's bytes."""

    version: int
    keys: list[str]
    shapes: list[Any]
    dtypes: list[str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Answer to Status."""

    state: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """Answer to Enrol: who this key is from now on, for its next connection too."""

    name: str
    role: str
    workers: int = 1  # that may bear its name at a time


@dataclass(frozen=True, kw_only=True)
class Echo:
    """Answer to Probe. Payload: one frame of as many bytes as it asked for, which mean nothing; none for 0."""

    received_at: float  # Unix time at the server, seconds: when it read the Probe
    answered_at: float  # and when it answered
    host: dict[str, Any] = field(default_factory=dict)  # versions and free memory of the server
    layout: str = ""  # where the Probe's tensors differ from the run's, for people


@dataclass(frozen=True, kw_only=True)
class Ack:
    """Answer to Init, Load, Beat, Leave, Pardon and Order."""

    version: int
    live: int = 0  # workers that are there now
    stop: bool = False
    waiting: int = 0  # to Leave: local steps of this worker that are in no version yet


Request = (
    Hello | Init | Push | Pull | Beat | Leave | Lease | Share | Fetch | Load | Status | Pardon | Enrol | Order | Probe
)
Reply = Welcome | Refused | Receipt | Params | Ranges | Shared | Moments | Report | Enrolled | Echo | Ack
Message = Request | Reply | Part

REQUESTS: tuple[type, ...] = get_args(Request)
REPLIES: tuple[type, ...] = get_args(Reply)
