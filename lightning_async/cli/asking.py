"""One request to a running server, and its answer, without joining the run: what `status`, `pardon` and `join` do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_async.transport.keys import Key
    from lightning_async.wire.messages import Reply, Request

SLICE_S = 0.2
CHECK = (
    "Check that `lightning-async serve` runs there, that host and port are those it printed, and that firewalls or "
    "tunnels let TCP through"
)


def key_of(address: str, given: str | None) -> Key | None:
    """As `keys.key_for`; on the server's own machine also its owner's key, for the server that listened last."""
    from lightning_async.cli.keys import ADDRESS_FILE
    from lightning_async.transport.keys import OWNER_FILE, file_for, key_for, read_key, server_dir

    own = server_dir()
    known = (own / ADDRESS_FILE).exists() and (own / ADDRESS_FILE).read_text().strip() == address
    if given or not known or file_for(address).exists():
        return key_for(address, given)
    return read_key(own / OWNER_FILE)


def ask(address: str, request: Request, timeout_s: float, key: Key | None = None) -> Reply:
    """The answer of the server at `address`. Raises UnreachableError when none comes, ProtocolError for no answer,
    RefusedError when the server takes no key of ours."""
    from lightning_async.errors import ProtocolError, UnreachableError
    from lightning_async.transport import connect
    from lightning_async.wire.frames import Envelope, pack, unpack
    from lightning_async.wire.messages import REPLIES

    line = connect(address) if key is None else connect(address, key=key)
    try:
        line.send(pack(Envelope(1, request)))
        deadline = time.monotonic() + timeout_s
        while (frames := line.receive(SLICE_S)) is None:
            if time.monotonic() >= deadline:
                raise UnreachableError(
                    f"no server answered at {address} within {timeout_s:.0f} s. {line.trouble or CHECK}"
                )
        answer = unpack(frames).message
    finally:
        line.close()
    if not isinstance(answer, REPLIES):
        raise ProtocolError(f"{address} sent {type(answer).__name__}, expected an answer")
    return answer  # type: ignore[return-value]
