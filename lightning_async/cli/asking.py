"""One request to a running server, and its answer, without joining the run: what `status` and `pardon` do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_async.wire.messages import Reply, Request

SLICE_S = 0.2


def ask(address: str, request: Request, timeout_s: float) -> Reply:
    """The answer of the server at `address`. Raises UnreachableError when none comes, ProtocolError for no answer."""
    from lightning_async.errors import ProtocolError, UnreachableError
    from lightning_async.transport import connect
    from lightning_async.wire.frames import Envelope, pack, unpack
    from lightning_async.wire.messages import REPLIES

    line = connect(address)
    try:
        line.send(pack(Envelope(1, request)))
        deadline = time.monotonic() + timeout_s
        while (frames := line.receive(SLICE_S)) is None:
            if time.monotonic() >= deadline:
                raise UnreachableError(
                    f"no server answered at {address} within {timeout_s:.0f} s. Check that `lightning-async serve` "
                    "runs there, that host and port are those it printed, and that firewalls or tunnels let TCP through"
                )
        answer = unpack(frames).message
    finally:
        line.close()
    if not isinstance(answer, REPLIES):
        raise ProtocolError(f"{address} sent {type(answer).__name__}, expected an answer")
    return answer  # type: ignore[return-value]
