"""What the thread that trains and the courier hand each other: updates and questions out, outcomes and answers back."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from torch import Tensor

from lightning_async.transport.base import Frame
from lightning_async.wire.messages import Push, Receipt, Refused, Reply


@dataclass(frozen=True)
class Update:
    """What `exchange` sends: the message, the flat vector [n] and the buffers [b]."""

    push: Push
    vector: Tensor
    buffers: Tensor

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

    @classmethod
    def of(cls, receipt: Receipt, push: Push, kept: bool) -> Outcome:
        """What `receipt` says of `push`."""
        said = (receipt.seq, receipt.accepted, receipt.version, receipt.reason, receipt.detail)
        return cls(*said, kept, push.steps, push.samples)


def receipt_in(reply: Reply, push: Push) -> Receipt:
    """The receipt of `push`; a refusal before anybody looked at it is one too."""
    if isinstance(reply, Refused):
        return Receipt(seq=push.seq, accepted=False, version=-1, reason=reply.reason, detail=reply.detail)
    assert isinstance(reply, Receipt)
    return reply


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
