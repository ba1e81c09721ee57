"""A notice board: what the processes of one launch tell each other through the run's server.

It joins as an observer, before there is a model, and is never counted as a worker. The first value offered for a key
stays. Its use: who has prepared the data, which folder the logs go to, which checkpoint was the best.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning_async.errors import AsyncWANError, NetworkError, RefusedError
from lightning_async.layout import Layout
from lightning_async.transport import connect
from lightning_async.transport.base import Connection, Frame
from lightning_async.transport.keys import Key
from lightning_async.wire.messages import Hello, Refused, Reply, Request
from lightning_async.worker import requests
from lightning_async.worker.courier import GOODBYE_S, Courier
from lightning_async.worker.link import Link
from lightning_async.worker.replica import Arrival

POLL_S = 0.2
log = logging.getLogger(__name__)


class Board:
    """The board of launch group `group` on the server at `address`. Raises as a worker's link does."""

    def __init__(
        self,
        address: str,
        group: str,
        give_up: Callable[[], bool] = lambda: False,
        connect: Callable[..., Connection] = connect,
        key: Key | None = None,
    ) -> None:
        self._group, self._give_up = group, give_up
        name = f"board-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        name = name if key is None else f"{key.name}/{name}"
        hello = Hello(worker=name, instance=uuid.uuid4().hex, role="observer")
        dial = partial(connect, address) if key is None else partial(connect, address, key=key)
        self._courier = Courier(lambda welcomed, heard: Link(dial, hello, welcomed, heard, address), Layout(()))
        self._courier.start()

    def offer(self, key: str, value: str) -> str:
        """Offer `value` for `key`; the value that it has now."""
        return requests.share(self, f"{self._group}/{key}", value) or value

    def read(self, key: str) -> str | None:
        """The value of `key`; None while nobody has offered one."""
        return requests.share(self, f"{self._group}/{key}")

    def wait_for(self, key: str, timeout_s: float) -> str | None:
        """The value of `key` once somebody has offered one; None when the wait is over or was given up."""
        deadline = time.monotonic() + timeout_s
        while (value := self.read(key)) is None and time.monotonic() < deadline and not self._give_up():
            self.pause()
        return value

    def status(self) -> dict[str, Any]:
        """The run's state."""
        return requests.status(self)

    def parameters(self, layout: Layout) -> Arrival:
        """The run's newest published parameters."""
        return requests.parameters(self, layout)

    def pause(self) -> None:
        """Wait for a moment, in a way that signals interrupt."""
        self._courier.wait(lambda: False, self._give_up, POLL_S)

    def ask(self, message: Request, payload: tuple[Frame, ...] = ()) -> tuple[Reply, tuple[Frame, ...]]:
        """Any request of an observer and its answer. Raises RefusedError, NetworkError when the wait was given up."""
        ticket = self._courier.ask(message, payload)
        if not self._courier.wait(ticket.done.is_set, self._give_up):
            raise NetworkError("the wait for the server was given up because training is being stopped")
        if isinstance(ticket.reply, Refused):
            raise RefusedError(ticket.reply.reason, ticket.reply.detail)
        assert ticket.reply is not None
        return ticket.reply, ticket.payload

    def close(self, goodbye_s: float = GOODBYE_S) -> None:
        """Leave. Idempotent; a server that is gone is no error here."""
        try:
            self._courier.close("done", goodbye_s)
        except AsyncWANError as error:
            log.debug("%s", error)
