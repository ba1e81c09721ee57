"""What the thread that trains and the courier hand each other: updates and questions out, outcomes and answers back."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

from torch import Tensor

from lightning_async.errors import RefusedError
from lightning_async.transport.base import Frame
from lightning_async.wire.messages import Push, Receipt, Refused, Reply, Welcome


@dataclass(frozen=True)
class Update:
    """What `exchange` sends: the message, the flat vector [n] and the buffers [b]."""

    push: Push
    vector: Tensor
    buffers: Tensor
    own_steps: int = 1  # made since the last update; push.steps counts those of refused ones too

    def measured(self, compute_s: float, exchange_s: float) -> Update:
        """With what its round and the exchange before it took, for a server that fits rounds to their workers."""
        step_s = compute_s / self.own_steps if self.own_steps else 0.0
        return replace(self, push=replace(self.push, step_s=step_s, exchange_s=exchange_s))

    @property
    def buffer_bytes(self) -> Frame:
        """The buffers as they travel."""
        return self.buffers.detach().numpy().data.cast("B") if self.buffers.numel() else b""


@dataclass(frozen=True)
class Outcome:
    """What became of update `seq`. `kept`: the codec took a refused one back into its residual."""

    seq: int
    accepted: bool
    version: int
    reason: str = ""
    detail: str = ""
    kept: bool = False
    steps: int = 1  # that were in it
    samples: int = 1
    round_steps: int = 0  # of the next rounds; 0: as configured

    @classmethod
    def of(cls, receipt: Receipt, push: Push, kept: bool) -> Outcome:
        """What `receipt` says of `push`."""
        said = (receipt.seq, receipt.accepted, receipt.version, receipt.reason, receipt.detail)
        return cls(*said, kept, push.steps, push.samples, receipt.round_steps)


def riding(push: Push, have: int | None) -> Push:
    """`push`, asking for what is newer than version `have` unless that is None."""
    return push if have is None else replace(push, have=have)


def receipt_in(reply: Reply, push: Push) -> Receipt:
    """The receipt of `push`; a refusal before anybody looked at it is one too."""
    if isinstance(reply, Refused):
        return Receipt(seq=push.seq, accepted=False, version=-1, reason=reply.reason, detail=reply.detail)
    assert isinstance(reply, Receipt)
    return reply


def check_run(first: Welcome | None, again: Welcome, have: int) -> None:
    """Whether a worker that holds version `have` (-1: none) may go on in the run that it was let into again.

    Raises RefusedError in another run, or in this one without its parameters.
    """
    if first is None:
        return
    holds = max(first.version, have) >= 0
    if again.run_id == first.run_id and (again.version >= 0 or not holds):
        return
    if not holds and again.config == first.config:
        return  # neither run had begun
    got = "it without parameters" if again.run_id == first.run_id else f"run {again.run!r} ({again.run_id[:8]})"
    raise RefusedError(
        "unknown_run",
        f"the server was started anew without the state of run {first.run!r}: got {got}, expected the one that this "
        f"worker joined ({first.run_id[:8]}). Start the workers again, or the server with the state_dir of that run",
    )


@dataclass(frozen=True)
class Forgotten:
    """A server that was restored from a snapshot has lost accepted updates: those after `after`, up to `last`."""

    after: int
    last: int


@dataclass
class Ticket:
    """An answer to come."""

    reply: Reply | None = None
    payload: tuple[Frame, ...] = ()
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def answer(self) -> tuple[Reply, tuple[Frame, ...]]:
        """Once it is `done`. Raises RefusedError for a refusal."""
        assert self.reply is not None
        if isinstance(self.reply, Refused):
            raise RefusedError(self.reply.reason, self.reply.detail)
        return self.reply, self.payload
