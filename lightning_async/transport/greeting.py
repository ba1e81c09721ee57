"""Who answers at a TCP port, found out by its first bytes: a server of ours, with keys or without, or something else.

Both sides of ZMTP 3 (RFC 23) begin with 64 bytes that name their mechanism, which is all that is needed here, so no
socket of ZeroMQ is opened and nothing is proved: this is for telling people what is wrong, not for trusting anybody.
Who waits to be spoken to is asked in HTTP, over a second connection.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from dataclasses import dataclass

START = (
    b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00"
)  # of a greeting: who hears our mechanism may hang up before he names his
GREETING_BYTES = 64
HTTP = b"GET / HTTP/1.0\r\n\r\n"
MOST_BYTES = 4096  # that are read of whoever is there
PAUSE_S = 1.0  # before somebody who says nothing is asked in the other protocol too
SERVER = b"Server: lightning-async"  # what ours says over HTTP


@dataclass(frozen=True)
class Greeted:
    """`kind`: "zmtp" (then `mechanism` is NULL or CURVE), "http" (`ours`: a server of this package), "other" (`said`
    is what came), "silent"."""

    kind: str
    mechanism: str = ""
    ours: bool = False
    said: bytes = b""


def resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[object, ...]]]:
    """(family, address) of everything that `host` stands for. Raises OSError for a name that nobody knows."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, place) for family, _, _, _, place in found]


def dial(host: str, port: int, timeout_s: float) -> socket.socket:
    """A TCP connection to the first address of `host` that takes one; to be closed. Raises OSError, which says why."""
    return socket.create_connection((host, port), timeout=max(0.1, timeout_s))


def greet(host: str, port: int, timeout_s: float, http: bool = False) -> Greeted:
    """Who is there; `http`: where that is expected. Raises OSError when nobody takes the connection."""
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        lines: dict[socket.socket, bytes] = {}  # and what has come over each
        for number, say in enumerate((HTTP, START) if http else (START, HTTP)):
            line = stack.enter_context(dial(host, port, max(0.1, deadline - time.monotonic())))
            lines[line] = b""
            with contextlib.suppress(OSError):
                line.sendall(say)
            found = _heard(lines, deadline if number else time.monotonic() + min(PAUSE_S, timeout_s / 2))
            if found is not None:
                return found
    return Greeted("silent")


def _heard(lines: dict[socket.socket, bytes], until: float) -> Greeted | None:
    """Who it is, by the first of the lines over which enough has come; None when nothing has."""
    while lines:
        ready, _, _ = select.select(list(lines), [], [], max(0.0, until - time.monotonic()))
        for line in ready:
            part = b""
            with contextlib.suppress(OSError):
                part = line.recv(MOST_BYTES)
            lines[line] += part
            if _enough(lines[line]) or (not part and lines[line]):
                return _read(lines[line])
            if not part:
                del lines[line]
        if time.monotonic() >= until:
            break
    said = max(lines.values(), key=len, default=b"")
    return _read(said) if said else None


def _read(said: bytes) -> Greeted:
    if said[:1] == b"\xff" and said[9:10] == b"\x7f":
        return Greeted("zmtp", said[12:32].rstrip(b"\0").decode("ascii", "replace"))
    if said.startswith(b"HTTP/"):
        return Greeted("http", ours=SERVER in said, said=said)
    return Greeted("other", said=said)


def _enough(said: bytes) -> bool:
    if said[:1] == b"\xff":
        return len(said) >= GREETING_BYTES
    ended = b"\r\n\r\n" in said if said.startswith(b"HTTP/") else b"\n" in said
    return ended or len(said) >= MOST_BYTES
