"""The server's end for networks that let only HTTP pass: XML-RPC over HTTP or HTTPS, one thread for each connection.

Slow and three times the work of a socket of ZeroMQ, so it is what a worker falls back on. Who may call is asked before
anything of a call is read: a token in the header, or a certificate that `clients` has signed. Sizes are bounded by the
limit on messages, waits and the number of connections by constants. What is refused is counted in `refused`, by why.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import math
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from lightning_async.errors import CallerError, ConfigError, ProtocolError
from lightning_async.transport.addresses import EVERYWHERE, Address, is_loopback, listening, parse
from lightning_async.transport.base import Frame, Listener
from lightning_async.transport.xmlrpc_desk import Desk
from lightning_async.transport.xmlrpc_text import answer, read_call

QUEUE = 64
LARGEST_MESSAGE_BYTES = 1 * 2**30
PATH = "/RPC2"
MOST_CONNECTIONS = 1024
MOST_FROM_ONE_ADDRESS = 256  # but for this machine's, where a reverse proxy may stand for many
IDLE_S = (
    30.0  # a connection that says nothing for this long is closed; so is one whose call takes twice as long to begin,
)
SLOWEST_BYTES_S = 1000.0  # or comes more slowly than this
ENVELOPE_BYTES = 4096  # of XML around the frames of a message
log = logging.getLogger(__name__)


def listen(
    url: str,
    *,
    public: bool = False,
    token: str = "",
    certificate: Path | None = None,
    clients: Path | None = None,
    queue: int = QUEUE,
    largest_message_bytes: int = LARGEST_MESSAGE_BYTES,
) -> XmlRpcListener:
    """Listen at `http://host:port`, or at `https://host:port` with `certificate`, a PEM file of chain and key.

    `token`: callers must have it; `clients`: a PEM file, callers must have a certificate that it has signed. Raises
    ConfigError for what cannot be used, and for an address beyond this machine where not both https and one of these
    are there, unless `public`.
    """
    address, secure = place(url)
    guarded = secure and bool(token or clients)
    if not (public or guarded or is_loopback(address.host)):
        raise ConfigError(
            f"{url} can be reached from other machines: it needs https with a certificate, and a token or certificates "
            "of its clients; or, inside a network that you trust, public=True"
        )
    return XmlRpcListener(address, _context(secure, certificate, clients), token, queue, largest_message_bytes)


def text_bytes(message_bytes: int) -> int:
    """The most that messages of so many bytes take: base64 with its line ends, and XML around it."""
    return int(1.4 * message_bytes) + 100 * ENVELOPE_BYTES


def place(url: str) -> tuple[Address, bool]:
    """(address, whether it is https) of an http or https URL. Raises ConfigError."""
    scheme, _, rest = url.strip().partition("://")
    if scheme not in ("http", "https"):
        raise ConfigError(f"got {url!r}, expected http://host:port or https://host:port")
    try:
        return parse(f"tcp://{rest.removesuffix('/').removesuffix(PATH)}"), scheme == "https"
    except ConfigError:
        raise ConfigError(f"got {url!r}, expected http://host:port or https://host:port") from None


def _context(secure: bool, certificate: Path | None, clients: Path | None) -> ssl.SSLContext | None:
    if secure != (certificate is not None):
        raise ConfigError(f"https needs a certificate, and http takes none: got certificate={certificate}")
    if certificate is None:
        if clients is not None:
            raise ConfigError("certificates of clients need https")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate)
        if clients is not None:
            context.load_verify_locations(clients)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise ConfigError(f"cannot use {certificate} or {clients}: {error}") from error
    return context


class XmlRpcListener(Listener):
    """A peer is a hash of its session's secret name."""

    def __init__(
        self, address: Address, context: ssl.SSLContext | None, token: str, queue: int, largest_bytes: int
    ) -> None:
        self.desk, self.refused = Desk(queue, largest_bytes), Counter[str]()
        self._token, self._closed = token.encode(), False
        self._lock = threading.Lock()
        self._server = _Server(listening(address), context, self)
        host = socket.gethostname() if address.host == EVERYWHERE else address.host
        scheme = "http" if context is None else "https"
        self.address = Address(host, self._server.server_address[1]).url.replace("tcp", scheme, 1)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="lightning-async-http")
        self._thread.daemon = True
        self._thread.start()

    def __repr__(self) -> str:
        return f"<XmlRpcListener {self.address} | refused {sum(self.refused.values())}>"

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        self._check()
        return self.desk.take(timeout_s)

    def send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        self._check()
        return self.desk.send(peer, frames)

    def wake(self) -> None:
        self.desk.wake()

    def limit(self, largest_message_bytes: int) -> None:
        self.desk.largest_bytes = largest_message_bytes

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.desk.close()
        self._server.shutdown()
        self._server.hang_up()
        self._thread.join()
        self._server.server_close()

    def admits(self, authorization: str) -> bool:
        """Whether a caller with this header may call."""
        given = authorization.removeprefix("Bearer ").encode("utf-8", "replace")
        return not self._token or hmac.compare_digest(given, self._token)

    def refuse(self, why: str) -> None:
        """Count it, and say so the 1st, 2nd, 4th, 8th ... time."""
        with self._lock:
            self.refused[why] += 1
            count = self.refused[why]
        level = logging.WARNING if count & (count - 1) == 0 else logging.DEBUG
        log.log(level, "call %d over HTTP that was refused: %s", count, why)

    def answer(self, text: bytes) -> bytes:
        """The answer to one call. Raises ProtocolError."""
        method, values = read_call(text)
        desk = self.desk
        methods: dict[tuple[str, int], Callable[..., Any]] = {
            ("put", 3): desk.put,
            ("poll", 4): desk.poll,
            ("leave", 1): desk.leave,
        }
        known = methods.get((method, len(values)))
        if known is None:
            raise ProtocolError(f"got {method[:20]!r} with {len(values)} values, expected put(3), poll(4) or leave(1)")
        return answer(known(*values))

    @property
    def longest_text(self) -> int:
        """Of a call."""
        return text_bytes(self.desk.largest_bytes)

    def _check(self) -> None:
        if self._closed:
            raise CallerError("this end is closed; open another one")


class _Server(ThreadingMixIn, TCPServer):
    """Accepts; a thread for each connection, all of which are joined in the end."""

    daemon_threads = False

    def __init__(self, door: socket.socket, context: ssl.SSLContext | None, listener: XmlRpcListener) -> None:
        super().__init__(door.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.server_address = door, door.getsockname()
        self.context, self.listener = context, listener
        self.open: dict[socket.socket, str] = {}  # and where they come from
        self.due: dict[socket.socket, float] = {}  # when the rest of a call has to be here

    def verify_request(self, request: Any, client_address: Any) -> bool:
        host = client_address[0]
        many = not is_loopback(host) and list(self.open.values()).count(host) > MOST_FROM_ONE_ADDRESS
        if len(self.open) <= MOST_CONNECTIONS and not many:
            return True
        self.listener.refuse("too many connections")
        return False

    def service_actions(self) -> None:
        """End the lines whose calls are overdue: several times a second."""
        now = time.monotonic()
        for line, due in list(self.due.items()):
            if due < now:
                del self.due[line]
                self.listener.refuse("too slow")
                _end(line)

    def get_request(self) -> tuple[Any, Any]:
        line, who = self.socket.accept()
        line.settimeout(IDLE_S)
        if self.context is not None:  # the handshake is the handler's, so that nobody waits for a slow one
            line = self.context.wrap_socket(line, server_side=True, do_handshake_on_connect=False)
        self.open[line] = who[0]
        return line, who

    def shutdown_request(self, request: Any) -> None:
        self.open.pop(request, None)
        self.due.pop(request, None)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for line in tuple(self.open):
            _end(line)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            self.listener.refuse("TLS without what is asked for")
        elif isinstance(error, OSError):
            log.debug("a caller has hung up: %s", error)
        else:
            log.error("a call over HTTP failed", exc_info=error)


def _end(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """The calls of one connection."""

    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        self._expect(2 * IDLE_S)  # who says nothing at all is closed by the socket's own timeout before
        super().handle_one_request()

    def _expect(self, seconds: float) -> None:
        """The rest of the call comes within so many seconds; math.inf once it is here."""
        self.server.due[self.connection] = time.monotonic() + seconds

    def do_POST(self) -> None:
        listener = self.server.listener
        length = self.headers.get("Content-Length", "")
        if not listener.admits(self.headers.get("Authorization", "")):
            self._refuse(401, "wrong token")
        elif self.path != PATH or not length.isascii() or not length.isdigit():
            self._refuse(400, "no call")
        elif int(length) > listener.longest_text:
            self._refuse(413, "too large")
        else:
            self._expect(IDLE_S + int(length) / SLOWEST_BYTES_S)
            text = self.rfile.read(int(length))
            self._expect(math.inf)
            self._answer(text)

    def _answer(self, text: bytes) -> None:
        try:
            found = self.server.listener.answer(text)
        except ProtocolError as error:
            self._refuse(400, "hostile XML" if "Forbidden" in str(error) else "not readable", str(error))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    def _refuse(self, code: int, why: str, detail: str = "") -> None:
        self.server.listener.refuse(why)
        self.close_connection = True
        self.send_error(code, why, detail[:200] or None)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def version_string(self) -> str:
        return "lightning-async"
