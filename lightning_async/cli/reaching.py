"""The way to a server, looked at from below: name, port, who answers, keys. Raises Ill where it ends."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

from lightning_async.cli.trouble import Ill
from lightning_async.errors import ConfigError, ProtocolError
from lightning_async.transport.addresses import EVERYWHERE
from lightning_async.transport.greeting import Greeted, greet, resolve
from lightning_async.transport.keys import Key

SHOWN = 60  # characters of what somebody else says


def place(address: str) -> tuple[str, str, int]:
    """(scheme, host, port). Raises ConfigError for an address that nobody can dial."""
    from lightning_async.transport.addresses import parse
    from lightning_async.transport.xmlrpc_server import place as http_place

    scheme = urlsplit(address).scheme
    if scheme not in ("tcp", "http", "https"):
        raise ConfigError(f"got {address!r}, expected tcp://host:port, http://host:port or https://host:port")
    found = parse(address) if scheme == "tcp" else http_place(address)[0]
    if found.host == EVERYWHERE or not found.port:
        raise ConfigError(f"got {address!r}, where a server may listen and nobody can dial; expected its host and port")
    return scheme, found.host, found.port


def reach(address: str, timeout_s: float) -> Greeted:
    """Who answers at `address`, which is a server that may be ours. Raises Ill."""
    scheme, host, port = place(address)
    try:
        resolve(host, port)
    except (OSError, UnicodeError) as error:
        raise Ill("host_unknown", f"nobody knows the host {host!r}: {_why(error)}") from None
    try:
        found = greet(host, port, timeout_s, http=scheme != "tcp")
    except ConnectionRefusedError:
        raise Ill("port_closed", f"{host} is there, and nothing listens at its port {port}") from None
    except OSError as error:
        raise Ill(
            "no_route", f"no connection to {host}, port {port}, within {timeout_s:.0f} s: {_why(error)}"
        ) from None
    if scheme == "tcp" and found.kind != "zmtp":
        raise _stranger(found, host, port)
    if (found.kind == "zmtp" and scheme != "tcp") or (found.kind == "other" and scheme == "http"):
        raise _stranger(found, host, port)
    return found


def check_http(address: str, timeout_s: float) -> None:
    """Make a call as a worker would. Raises Ill."""
    from lightning_async.transport.xmlrpc_client import try_out

    try:
        try_out(address, timeout_s)
    except ssl.SSLError as error:
        raise Ill("certificate", f"{address}: {_why(error)}") from None
    except OSError as error:
        raise Ill("no_answer", f"{address} took the connection and did not answer: {_why(error)}") from None
    except ProtocolError as error:
        code = "http_token" if "HTTP 401" in str(error) else "not_ours"
        raise Ill(code, f"{address} answered: {error}") from None


def key_at(
    address: str, given: str | None, found: Greeted, choose: Callable[[str, str | None], Key | None]
) -> Key | None:
    """The key to speak with `address`, whose mechanism is known. Raises Ill."""
    if not address.startswith("tcp://"):
        return None
    try:
        key = choose(address, given)
    except ConfigError as error:
        raise Ill("needs_key" if str(error).startswith("no key for") else "key_file", str(error)) from None
    if found.mechanism == "CURVE" and key is None:
        raise Ill("needs_key", f"{address} speaks only with those who have a key, and there is none here for it")
    if found.mechanism == "NULL" and key is not None:
        raise Ill("no_keys_there", f"{address} speaks without keys, and this machine has a key for it")
    return key


def _stranger(found: Greeted, host: str, port: int) -> Ill:
    if found.kind == "http":
        if found.ours:
            return Ill("http_there", f"a server of lightning_async answers at {host}:{port}, over HTTP")
        return Ill("not_ours", f"an HTTP server answers at {host}:{port}: {_shown(found.said)}")
    if found.kind == "silent":
        return Ill("not_ours", f"whoever listens at {host}:{port} took the connection and said nothing")
    what = "a ZeroMQ socket" if found.kind == "zmtp" else "another program"
    return Ill("not_ours", f"{what} answers at {host}:{port}: {_shown(found.said)}")


def _shown(said: bytes) -> str:
    text = said.splitlines()[0] if said.splitlines() else b""
    return repr(text[:SHOWN].decode("ascii", "replace"))


def _why(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
