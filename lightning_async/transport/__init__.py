"""How messages travel. `listen(url)` and `connect(url)` choose the transport by the scheme of the URL.

| scheme | what it is |
|---|---|
| `tcp://host:port` | TCP with ZeroMQ (`transport.zeromq`) |
| `http://host:port`, `https://host:port` | XML-RPC, where only HTTP passes (`transport.xmlrpc_server`) |
| `memory://name` | inside one process, for tests and examples (`transport.memory`) |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_async.errors import ConfigError
from lightning_async.transport import memory
from lightning_async.transport.base import Connection, Listener, Traffic

__all__ = ["TRANSPORTS", "Connection", "Listener", "Traffic", "Transport", "connect", "listen"]


@dataclass(frozen=True)
class Transport:
    """The two ends of one family member; both take a URL and their own keyword options."""

    listen: Callable[..., Listener]
    connect: Callable[..., Connection]


def _tcp_listen(url: str, **options: Any) -> Listener:
    from lightning_async.transport import zeromq  # a program that never opens a TCP line needs no zmq

    return zeromq.listen(url, **options)


def _tcp_connect(url: str, **options: Any) -> Connection:
    from lightning_async.transport import zeromq

    return zeromq.connect(url, **options)


def _http_listen(url: str, **options: Any) -> Listener:
    from lightning_async.transport import xmlrpc_server

    return xmlrpc_server.listen(url, **options)


def _http_connect(url: str, **options: Any) -> Connection:
    from lightning_async.transport import xmlrpc_client

    return xmlrpc_client.connect(url, **options)


TRANSPORTS: dict[str, Transport] = {
    "tcp": Transport(_tcp_listen, _tcp_connect),
    "http": Transport(_http_listen, _http_connect),
    "https": Transport(_http_listen, _http_connect),
    "memory": Transport(memory.listen, memory.connect),
}


def listen(url: str, **options: Any) -> Listener:
    """The server's end at `url`. Options are those of its transport; raises ConfigError for a URL nobody knows."""
    return _named(url).listen(url, **options)


def connect(url: str, **options: Any) -> Connection:
    """A worker's end that dials `url`. Options are those of its transport; raises ConfigError likewise.

    Whoever dials for a user asks `keys.key_for` first, and gives what it says as `key`.
    """
    return _named(url).connect(url, **options)


def _named(url: str) -> Transport:
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in TRANSPORTS:
        known = ", ".join(f"{name}://" for name in TRANSPORTS)
        raise ConfigError(f"got the address {url!r}, expected one that begins with {known}")
    return TRANSPORTS[scheme]
