"""Plain TCP through a proxy: an end that listens, an end that dials, and exact counts of bytes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from eventually import ENOUGH_S

from lightning_async.links import Link, link
from lightning_async.transport.shaping import Proxy


@contextmanager
def through(choice: str | Link, seed: int = 0) -> Iterator[tuple[Proxy, socket.socket, socket.socket]]:
    """(proxy, the end that dialled, the end that was dialled), over a line."""
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        Proxy(f"tcp://127.0.0.1:{door.getsockname()[1]}", link(choice), seed=seed) as proxy,
        dial(proxy) as near,
    ):
        door.settimeout(ENOUGH_S)
        far, _ = door.accept()
        with far:
            far.settimeout(ENOUGH_S)
            yield proxy, near, far


def dial(proxy: Proxy) -> socket.socket:
    place = urlsplit(proxy.address)
    return socket.create_connection((place.hostname, place.port), timeout=ENOUGH_S)


def received(line: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, or what came before the end."""
    whole = b""
    while len(whole) < size and (part := line.recv(min(size - len(whole), 1 << 16))):
        whole += part
    return whole


def drained(line: socket.socket) -> int:
    """How many bytes come until the connection ends, in order or broken."""
    count = 0
    try:
        while part := line.recv(1 << 16):
            count += len(part)
    except ConnectionError:
        pass
    return count
