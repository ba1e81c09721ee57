"""How a run begins: one worker gives it its first parameters, the others wait for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from lightning_async.layout import Shared
from lightning_async.transport.base import Frame
from lightning_async.wire.messages import Ack, Beat, Init, Welcome
from lightning_async.worker.replica import Replica
from lightning_async.worker.requests import Asker

GREET_S = 2.0  # how often a worker that waits for the first parameters asks whether it is to send them
POLL_S = 0.1


class Joiner(Asker, Protocol):
    """What is needed of an engine."""

    shared: Shared
    replica: Replica
    clock: Callable[[], float]

    def wait(self, ready: Callable[[], bool], timeout_s: float = 1e9) -> bool: ...

    def until(self, ready: Callable[[], bool]) -> None: ...


def begin_run(
    joiner: Joiner, welcome: Callable[[], Welcome], greet: Callable[[], None], records: list[dict[str, Any]]
) -> None:
    """Return once the run has parameters: send them when asked to, wait for whoever was asked otherwise.

    `records` describe the optimizers that the server is to run, in gradient mode.
    """
    greeted = joiner.clock()
    while welcome().version < 0:
        if welcome().initialise:
            joiner.ask(Init(digest=joiner.shared.layout.digest, optimizers=records), first_parameters(joiner.replica))
            return
        reply, _ = joiner.ask(Beat())
        if isinstance(reply, Ack) and reply.version >= 0:
            return
        joiner.wait(lambda: False, POLL_S)
        if joiner.clock() - greeted > GREET_S:
            greeted, before = joiner.clock(), welcome()
            greet()
            joiner.until(lambda before=before: welcome() is not before)  # type: ignore[misc]


def first_parameters(replica: Replica) -> tuple[Frame, ...]:
    """The live parameters [d] and buffers [b] as bytes."""
    vectors = (replica.live().cpu(), replica.live_buffers())
    return tuple(vector.numpy().data.cast("B") if vector.numel() else b"" for vector in vectors)
