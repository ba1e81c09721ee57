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
from typing import Any

from lightning_async.errors import AsyncWANError, NetworkError, ProtocolError, RefusedError
from lightning_async.transport import connect
from lightning_async.wire.messages import Hello, Refused, Reply, Report, Request, Share, Shared, Status
from lightning_async.worker.courier import Courier
from lightning_async.worker.link import Link

POLL_S = 0.2
log = logging.getLogger(__name__)


class Board:
    """The board of launch group `group` on the server at `address`. Raises as a worker's link does."""

    def __init__(self, address: str, group: str, give_up: Callable[[], bool] = lambda: False) -> None:
        self._group, self._give_up = group, give_up
        hello = Hello(worker=f"board-{os.getpid()}-{uuid.uuid4().hex[:8]}", instance=uuid.uuid4().hex, role="observer")
        self._courier = Courier(
            lambda welcomed, heard: Link(lambda: connect(address), hello, welcomed, heard, address), 0, 0
        )
        self._courier.start()

    def offer(self, key: str, value: str) -> str:
        """Offer `value` for `key`; the value that it has now."""
        return self._share(key, value) or value

    def read(self, key: str) -> str | None:
        """The value of `key`; None while nobody has offered one."""
        return self._share(key, None)

    def wait_for(self, key: str, timeout_s: float) -> str | None:
        """The value of `key` once somebody has offered one; None when the wait is over or was given up."""
        deadline = time.monotonic() + timeout_s
        while (value := self.read(key)) is None and time.monotonic() < deadline and not self._give_up():
            self.pause()
        return value

    def status(self) -> dict[str, Any]:
        """The run's state."""
        reply = self._ask(Status())
        if not isinstance(reply, Report):
            raise ProtocolError(f"Status was answered by {type(reply).__name__}")
        return reply.state

    def pause(self) -> None:
        """Wait for a moment, in a way that signals interrupt."""
        self._courier.wait(lambda: False, self._give_up, POLL_S)

    def close(self) -> None:
        """Leave. Idempotent; a server that is gone is no error here."""
        try:
            self._courier.close("done")
        except AsyncWANError as error:
            log.debug("%s", error)

    def _share(self, key: str, value: str | None) -> str | None:
        reply = self._ask(Share(key=f"{self._group}/{key}", value=value))
        if not isinstance(reply, Shared):
            raise ProtocolError(f"Share was answered by {type(reply).__name__}")
        return reply.value

    def _ask(self, message: Request) -> Reply:
        ticket = self._courier.ask(message)
        if not self._courier.wait(ticket.done.is_set, self._give_up):
            raise NetworkError("the wait for the server was given up because training is being stopped")
        if isinstance(ticket.reply, Refused):
            raise RefusedError(ticket.reply.reason, ticket.reply.detail)
        assert ticket.reply is not None
        return ticket.reply
