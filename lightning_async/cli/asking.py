"""Requests to a running server, and their answers, without joining the run: of `status`, `join`, `doctor` and more."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_async.transport.base import Frame
    from lightning_async.transport.keys import Key
    from lightning_async.wire.frames import Envelope
    from lightning_async.wire.messages import Reply, Request

SLICE_S = 0.2


def key_of(address: str, given: str | None, orders: bool = False) -> Key | None:
    """As `keys.key_for`; on the server's own machine also its owner's key, for the server that listened last.

    `orders`: only the owner may, so a worker's key that was made there too is not taken in its place.
    """
    from lightning_async.cli.keys import ADDRESS_FILE
    from lightning_async.transport.keys import OWNER_FILE, file_for, key_for, read_key, server_dir

    own = server_dir()
    known = (own / ADDRESS_FILE).exists() and (own / ADDRESS_FILE).read_text().strip() == address
    if given or not known or (file_for(address).exists() and not orders):
        return key_for(address, given)
    return read_key(own / OWNER_FILE)


class Talk:
    """A connection over which one thing at a time is asked. `with Talk(address, key) as talk`.

    `impatient`: no longer than until the transport says what the trouble is.
    """

    def __init__(self, address: str, key: Key | None = None, impatient: bool = False) -> None:
        from lightning_async.transport import connect

        self.address, self.key, self._number = address, key, 0
        self._impatient = impatient
        self._line = connect(address) if key is None else connect(address, key=key)

    def __enter__(self) -> Talk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close()

    def ask(self, request: Request, timeout_s: float, payload: tuple[Frame, ...] = ()) -> Envelope:
        """The answer. Raises UnreachableError when none comes, ProtocolError for no answer (VersionError for one of
        another version of the protocol), RefusedError when the server takes no key of ours."""
        from lightning_async.errors import ProtocolError, UnreachableError
        from lightning_async.transport.base import hint
        from lightning_async.wire.frames import Envelope, pack, unpack
        from lightning_async.wire.messages import REPLIES

        self._number += 1
        self._line.send(pack(Envelope(self._number, request, payload)))
        deadline = time.monotonic() + timeout_s
        while True:
            frames = self._line.receive(SLICE_S)
            if frames is not None and (answer := unpack(frames)).id == self._number:
                break
            if time.monotonic() >= deadline or (self._impatient and self._line.trouble):
                raise UnreachableError(
                    f"no server answered at {self.address} within {timeout_s:.0f} s. {hint(self._line)}"
                )
        if not isinstance(answer.message, REPLIES):
            raise ProtocolError(f"{self.address} sent {type(answer.message).__name__}, expected an answer")
        return answer


def ask(address: str, request: Request, timeout_s: float, key: Key | None = None) -> Reply:
    """As `Talk.ask`, for one question."""
    with Talk(address, key) as talk:
        return talk.ask(request, timeout_s).message  # type: ignore[return-value]
