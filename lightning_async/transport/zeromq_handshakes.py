"""What a worker's socket tells of its handshakes: why the server there does not speak with it.

libzmq 4.3.5 loses an error while it tells of it, and keeps a connection on which bytes were altered without reading it
any more. An event of a failed handshake after one that has succeeded means this: `deaf`, to be dialled anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from lightning_async.errors import RefusedError
from lightning_async.transport.keys import HOW_TO_JOIN, NONE, Key

REASON = "key"  # the code of section 5 of docs/protocol.md
EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
REFUSED = 400  # ZAP's word for a key that is not let in
HANGS_UP = "Something answers there and hangs up in the handshake"
SUSPICIOUS = 3  # handshakes in a row that were hung up on


class Handshakes:
    """Follows those of `socket`, which dials `url` with `key`. To be closed before the socket is."""

    def __init__(self, socket: zmq.Socket[bytes], url: str, key: Key | None) -> None:
        self._socket, self._url, self._key = socket, url, key
        self._monitor = socket.get_monitor_socket(EVENTS)
        self._failed = 0
        self._succeeded = self.deaf = False

    def look(self) -> str:
        """What hinders the handshake, empty for nothing known. Raises RefusedError when it never will succeed."""
        while self._monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:  # type: ignore[operator,arg-type]
            self._note(dict(recv_monitor_message(self._monitor, zmq.NOBLOCK)))
        if self._failed < SUSPICIOUS:
            return ""
        other = "without the key that it wants" if self._key is None else "with another key than the one that we know"
        return f"{HANGS_UP}, as a server does {other}"

    def close(self) -> None:
        """Idempotent."""
        if not self._monitor.closed:
            self._socket.disable_monitor()
            self._monitor.close(0)

    def _note(self, event: Mapping[str, Any]) -> None:
        kind, value = event["event"], event["value"]
        if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and self._succeeded:
            self.deaf = True
            return
        self._succeeded = kind == zmq.EVENT_HANDSHAKE_SUCCEEDED
        self._failed = 0 if self._succeeded else self._failed + 1
        if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH and value == REFUSED:
            raise RefusedError(
                REASON,
                f"{self._url} does not let this key in: it is not on the server's list, or was revoked. {HOW_TO_JOIN}",
            )
        if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            raise RefusedError(REASON, self._mismatch())

    def _mismatch(self) -> str:
        if self._key is None:
            return f"{self._url} speaks only with those who have a key. {HOW_TO_JOIN}"
        return (
            f"{self._url} speaks without keys, and this worker has one: it does not go on without encryption. If that "
            f'is meant, inside a network that you trust, say key="{NONE}"'
        )
