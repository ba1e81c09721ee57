"""One HTTP connection of a worker's end, and the door at which every foreign error becomes one of ours.

The server may be hostile, or no server of ours: a proxy's login page, a redirect, gzip, XML that is a bomb, a body that
never ends or that comes a byte a minute. So an answer is bounded in bytes, in time as a whole, and in what it may be;
whatever http.client, ssl and the parsers raise about it is a ProtocolError or an OSError when it leaves this file.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import time
from typing import Any, cast

from lightning_async.errors import ProtocolError
from lightning_async.transport.addresses import Address
from lightning_async.transport.base import Count
from lightning_async.transport.xmlrpc_server import PATH, SLOWEST_BYTES_S
from lightning_async.transport.xmlrpc_text import call, read_answer

DIAL_S = 10.0  # for TCP and for TLS
ANSWER_S = 60.0  # until the whole answer is here, and as long again as its bytes take on the slowest line
AGAIN_S, AGAIN_MAX_S = 0.1, 5.0
TOO_LARGE = 413
HEADER_BYTES = 200  # of HTTP, about
PIECE_BYTES = 64 * 1024


class Caller:
    """One connection, dialled when it is needed. Its thread alone calls; `hang_up` may be called from another.

    `longest_bytes`: of an answer's text.
    """

    def __init__(
        self, address: Address, context: ssl.SSLContext | None, token: str, counted: Count, longest_bytes: int
    ) -> None:
        self._place, self._context, self._counted, self._longest_bytes = address, context, counted, longest_bytes
        self._line = http.client.HTTPConnection(address.host, address.port)
        self._line.auto_open = 0  # `_dial` does
        self._headers = {"Content-Type": "text/xml", **({"Authorization": f"Bearer {token}"} if token else {})}
        self._again_s, self._hung_up = AGAIN_S, False
        self._timed: _Timed | None = None
        self._socket: socket.socket | None = None

    def call(self, method: str, *values: Any, timeout_s: float | None = None) -> Any:
        """The answer, within `timeout_s` or ANSWER_S. Raises OSError when nobody gives one in time, ProtocolError for
        what is none."""
        text = call(method, *values)
        try:
            return self._answered(text, time.monotonic() + (ANSWER_S if timeout_s is None else timeout_s))
        except (OSError, ProtocolError):
            raise
        except http.client.HTTPException as error:
            raise ProtocolError(f"no answer in HTTP: {error!r:.200}") from error
        except Exception as error:  # of libraries that read what a stranger wrote
            raise ProtocolError(f"no answer that can be read: {type(error).__name__}: {str(error)[:100]}") from error

    def _answered(self, text: bytes, due: float) -> Any:
        if self._timed is None:
            self._dial(due)
        assert self._timed is not None
        self._timed.due = due + len(text) / SLOWEST_BYTES_S
        if self._hung_up:
            raise ConnectionAbortedError("this end hangs up")
        with contextlib.suppress(BrokenPipeError):  # refused before it was read; then the answer says why
            self._line.request("POST", PATH, text, self._headers)
        self._counted.sent += len(text) + HEADER_BYTES
        response = self._line.getresponse()
        if response.status == TOO_LARGE:
            self.close()
            raise TooLarge(f"HTTP {TOO_LARGE}")
        if response.status != 200:
            raise ProtocolError(f"HTTP {response.status} {response.reason[:100]}")
        return read_answer(self._body(response, self._timed))

    def _body(self, response: http.client.HTTPResponse, timed: _Timed) -> bytes:
        body = bytearray()
        while piece := response.read1(PIECE_BYTES):
            body += piece
            timed.due += len(piece) / SLOWEST_BYTES_S
            if len(body) > self._longest_bytes:
                raise ProtocolError(f"an answer of more than {self._longest_bytes} bytes")
        response.close()
        self._counted.received += len(body) + HEADER_BYTES
        if response.will_close:
            self.close()
        return bytes(body)

    def _dial(self, due: float) -> None:
        timeout_s = max(0.1, min(DIAL_S, due - time.monotonic()))
        line = self._socket = socket.create_connection((self._place.host, self._place.port), timeout_s)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            secured = self._context.wrap_socket(line, server_hostname=self._place.host, do_handshake_on_connect=False)
            line = self._socket = secured
            if not self._hung_up:
                secured.do_handshake()
        self._timed = _Timed(line)
        self._line.sock = cast(socket.socket, self._timed)

    def pause(self) -> float:
        """How long to wait after a failure, ever longer."""
        self._again_s, now = min(2 * self._again_s, AGAIN_MAX_S), self._again_s
        return now

    def calm(self) -> None:
        self._again_s = AGAIN_S

    def hang_up(self) -> None:
        self._hung_up = True
        line = self._socket
        if line is not None:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._line.close()
        if self._socket is not None:
            self._socket.close()
        self._timed = self._socket = None


class TooLarge(ProtocolError):
    """The server took no message of this size."""


class _Timed:
    """A socket, as far as http.client wants one, whose every wait ends at `due` at the latest (monotonic)."""

    def __init__(self, line: socket.socket) -> None:
        self._socket, self.due = line, 0.0

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reading(self))

    def sendall(self, data: bytes) -> None:
        self._wait()
        self._socket.sendall(data)

    def receive_into(self, buffer: Any) -> int:
        self._wait()
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        """Nothing: http.client closes before it has read an answer, the Caller after that."""

    def _wait(self) -> None:
        left = self.due - time.monotonic()
        if left <= 0:
            raise TimeoutError("the whole answer takes too long")
        self._socket.settimeout(left)


class _Reading(io.RawIOBase):
    """What one answer is read from; the next one comes over the same socket, so closing this ends nothing."""

    def __init__(self, timed: _Timed) -> None:
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._timed.receive_into(buffer)
