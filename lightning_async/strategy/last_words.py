"""What is said in the place of a server that is gone for good: its end, to every worker that still asks for it.

Workers dial the same address again and again, for minutes, because a server that dies is started again as a rule. When
it will not be, its owner listens there himself for a while and answers whatever comes by a refusal that says why, so
that every worker ends at once and knows what to do. Nothing is done here but that: no state, no joining.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from lightning_async.errors import AsyncWANError
from lightning_async.transport import listen
from lightning_async.transport.base import Listener
from lightning_async.wire.frames import Envelope, FrameError, pack, unpack
from lightning_async.wire.messages import Reason, Refused

TELL_S, MOST_S = (
    10.0,
    60.0,
)  # a worker dials every 5 s at least (transport/zeromq.py), with a question that waits to leave
SLICE_S = 0.2
MOST_TEXT = 4000  # characters of a reason that travel
log = logging.getLogger("lightning_async")


class LastWords:
    """Answers everybody at `address` with `why`, until `close`. An address that is taken is a warning in the log."""

    def __init__(self, address: str, why: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._why, self._clock, self._until = why[:MOST_TEXT], clock, clock() + TELL_S
        self._latest = self._until + MOST_S - TELL_S
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(address,), name="lightning-async-last-words")
        self._thread.daemon = True
        self._thread.start()

    def wait(self, ended: Callable[[], bool], hurry: Callable[[], bool]) -> None:
        """Give the workers time to ask: TELL_S, and until those that one can see have `ended`; not in a `hurry()`."""
        while self._thread.is_alive() and not hurry() and self._clock() < self._latest:
            if self._clock() >= self._until and ended():
                return
            self._closed.wait(SLICE_S)

    def close(self) -> None:
        """Free the address. Idempotent."""
        self._closed.set()
        self._thread.join()

    def _run(self, address: str) -> None:
        try:
            listener = listen(address)
        except AsyncWANError as error:
            log.warning("the other workers cannot be told that the server is gone, they find out by waiting: %s", error)
            return
        try:
            while not self._closed.is_set():
                self._answer(listener)
        finally:
            listener.close()

    def _answer(self, listener: Listener) -> None:
        got = listener.receive(SLICE_S)
        if got is None:
            return
        peer, frames = got
        try:
            request = unpack(frames, verify=False).id
        except FrameError as error:
            request = error.request
        if request:
            listener.send(peer, pack(Envelope(request, Refused(reason=Reason.LOST.value, detail=self._why))))
