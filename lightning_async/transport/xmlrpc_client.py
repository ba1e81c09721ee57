"""A worker's end for networks that let only HTTP pass. Two threads: one puts messages, one polls for them.

Each message has a number, and is said again until the server has taken it; what comes is acknowledged by the next poll.
So a connection that breaks, or a proxy on the way that gives up, costs time and no message.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lightning_async.errors import CallerError, ConfigError, NetworkError, ProtocolError
from lightning_async.transport.addresses import EVERYWHERE, Address
from lightning_async.transport.base import Connection, Count, Frame, Traffic
from lightning_async.transport.mailbox import Mailbox
from lightning_async.transport.xmlrpc_desk import ANSWER_BYTES
from lightning_async.transport.xmlrpc_line import Caller, TooLarge
from lightning_async.transport.xmlrpc_server import LARGEST_MESSAGE_BYTES, QUEUE, place, text_bytes
from lightning_async.transport.xmlrpc_text import Parcel, Polled, plain, polled, taken

TOKEN, CERTIFICATE = "LIGHTNING_ASYNC_HTTP_TOKEN", "LIGHTNING_ASYNC_HTTP_CERTIFICATE"
WAIT_S = 10.0  # for something to come, at the server
LEAVE_S = 2.0  # for a server that may be gone
SOON_S = (
    0.05  # an answer that says nothing and comes sooner than this is waited for a little, or it would be asked for ever
)
MOST_TRIED_BYTES = 2**20
T = TypeVar("T")
log = logging.getLogger(__name__)


def connect(
    url: str,
    *,
    token: str | None = None,
    authority: Path | None = None,
    certificate: Path | None = None,
    queue: int = QUEUE,
    largest_message_bytes: int = LARGEST_MESSAGE_BYTES,
) -> XmlRpcConnection:
    """Dial `http://host:port` or `https://host:port`, now and whenever the line breaks. Returns at once.

    `authority`: PEM file of who has signed the server's certificate; by default those that the system trusts.
    `certificate`: PEM file of our own, with its key. By default token and certificate are those of the environment,
    $LIGHTNING_ASYNC_HTTP_TOKEN and $LIGHTNING_ASYNC_HTTP_CERTIFICATE. Raises ConfigError for what cannot be used.
    """
    address, secure = place(url)
    if address.host == EVERYWHERE or address.port == 0:
        raise ConfigError(f"{url} is where a server may listen, not where one can be dialled; give its host and port")
    token = os.environ.get(TOKEN, "") if token is None else token
    own = os.environ.get(CERTIFICATE, "")
    certificate = Path(own) if certificate is None and own else certificate
    context = _context(authority, certificate) if secure else None
    return XmlRpcConnection(address, context, token, queue, largest_message_bytes)


def _context(authority: Path | None, certificate: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate)
    except OSError as error:
        raise ConfigError(f"cannot use {authority} or {certificate}: {error}") from error
    return context


def try_out(url: str, timeout_s: float) -> None:
    """One call that changes nothing, with the token and certificate of the environment.

    Raises OSError (nobody there, or not whom our system trusts), ProtocolError (the text says what it answered).
    """
    address, secure = place(url)
    own = os.environ.get(CERTIFICATE, "")
    context = _context(None, Path(own) if own else None) if secure else None
    caller = Caller(address, context, os.environ.get(TOKEN, ""), Count(), MOST_TRIED_BYTES)
    try:
        caller.call("leave", secrets.token_hex(16), timeout_s=timeout_s)
    finally:
        caller.close()


class XmlRpcConnection(Connection):
    def __init__(
        self, address: Address, context: ssl.SSLContext | None, token: str, queue: int, largest_bytes: int
    ) -> None:
        self._url = address.url.replace("tcp", "http" if context is None else "https", 1)
        self._largest_bytes, self._room, self._counted = largest_bytes, queue, Count()
        self._session = secrets.token_hex(16)
        self._outbox: deque[tuple[int, Parcel]] = deque()
        self._sent = 0
        self._changed = threading.Condition()
        self._inbox: Mailbox[list[memoryview]] = Mailbox(queue)
        self._closed = threading.Event()
        longest_bytes = text_bytes(max(ANSWER_BYTES, largest_bytes))
        self._caller = partial(Caller, address, context, token, self._counted, longest_bytes)
        self._callers = (self._caller(), self._caller())
        self._threads = [
            threading.Thread(target=run, args=(caller,), name="lightning-async-http", daemon=True)
            for run, caller in zip((self._put, self._poll), self._callers, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        return f"<XmlRpcConnection {self._url} | up {self._counted.sent} B | down {self._counted.received} B>"

    def send(self, frames: Sequence[Frame]) -> None:
        self._check()
        with self._changed:
            if len(self._outbox) >= self._room:
                raise NetworkError(f"{self._url} does not read: its queue of messages is full")
            self._sent += 1
            self._outbox.append((self._sent, plain(frames)))
            self._changed.notify()

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        self._check()
        return self._inbox.take(timeout_s)

    def wake(self) -> None:
        self._inbox.wake()

    def traffic(self) -> Traffic:
        return self._counted.traffic()

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        for caller in self._callers:
            caller.hang_up()
        for thread in self._threads:
            thread.join()
        last = self._caller()
        with contextlib.suppress(OSError, ProtocolError):
            last.call("leave", self._session, timeout_s=LEAVE_S)
        for caller in (*self._callers, last):
            caller.close()
        self._inbox.clear()

    def _put(self, caller: Caller) -> None:
        while not self._closed.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._outbox or self._closed.is_set())
                first = self._outbox[0] if self._outbox else None
            if first is None or self._closed.is_set():
                return
            if self._asked(caller, taken, bool, "put", self._session, *first):
                with self._changed:
                    self._outbox.popleft()

    def _poll(self, caller: Caller) -> None:
        epoch, have = "", 0
        while not self._closed.is_set():
            news = partial(_news, epoch, have)
            found = self._asked(caller, polled, news, "poll", *self._question(epoch, have))
            if found is None:
                continue
            have, epoch = (have if found.epoch == epoch else 0), found.epoch
            for number, message in found.messages:
                if number > have and self._deliver(message):
                    have = number

    def _question(self, epoch: str, have: int) -> tuple[Any, ...]:
        return self._session, epoch, have, int(WAIT_S * 1000)

    def _deliver(self, message: Parcel) -> bool:
        """Put it where `receive` finds it, as soon as there is room."""
        views = [memoryview(frame) for frame in message]
        if any(len(view) > self._largest_bytes for view in views):
            return True
        while not self._inbox.put(views):
            if self._closed.wait(0.02):
                return False
        return True

    def _asked(
        self, caller: Caller, read: Callable[[Any], T], says: Callable[[T], bool], method: str, *values: Any
    ) -> T | None:
        """What `read` makes of the answer; None when there was none, after a pause that grows. Also after an answer
        that `says` nothing and was there at once there is a pause: a server that knows ours waits before it gives one.
        """
        began = time.monotonic()
        try:
            found = read(caller.call(method, *values))
        except TooLarge as error:
            if method == "put":
                return read(True)  # it is gone, as over every transport
            self._failed(caller, method, error)
            return None
        except (OSError, ProtocolError) as error:
            self._failed(caller, method, error)
            return None
        caller.calm()
        if not says(found) and time.monotonic() - began < SOON_S:
            self._closed.wait(SOON_S)
        return found

    def _failed(self, caller: Caller, method: str, error: Exception) -> None:
        if not self._closed.is_set():
            log.debug("%s of %s: %s", method, self._url, error)
            caller.close()
            self.trouble = f"the last call ended so: {error}"
            self._closed.wait(caller.pause())

    def _check(self) -> None:
        if self._closed.is_set():
            raise CallerError("this end is closed; open another one")


def _news(epoch: str, have: int, found: Polled) -> bool:
    """Whether an answer holds what was not there before."""
    known = have if found.epoch == epoch else 0
    return any(number > known for number, _ in found.messages)
