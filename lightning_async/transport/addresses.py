"""Where a socket listens or dials: `tcp://host:port` taken apart and judged, and a listening socket opened there."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from lightning_async.errors import ConfigError

EVERYWHERE = "*"
BACKLOG = 1024  # connections that wait to be accepted
_URL = re.compile(r"tcp://(\[[0-9a-fA-F:.%a-z]+\]|[^\s/:\[\]]+):([0-9]{1,5})", re.ASCII)


@dataclass(frozen=True)
class Address:
    """A TCP address. `host` is a name, an IPv4 or IPv6 literal without brackets, or `*` (every interface)."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


def parse(url: str) -> Address:
    """The address in `url`; `localhost` is 127.0.0.1 and an any-address is `*`. Raises ConfigError."""
    found = _URL.fullmatch(url.strip())
    if found is None or int(found[2]) > 65_535:
        raise ConfigError(
            f"got {url!r}, expected tcp://host:port, for example tcp://127.0.0.1:5555 or tcp://[::1]:5555"
        )
    host = found[1].strip("[]")
    host = {"localhost": "127.0.0.1", "0.0.0.0": EVERYWHERE, "::": EVERYWHERE}.get(host.lower(), host)
    return Address(host, int(found[2]))


def is_literal(host: str) -> bool:
    """Whether `host` is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; a name is not trusted to be."""
    return is_literal(host) and ipaddress.ip_address(host).is_loopback


def listening(address: Address) -> socket.socket:
    """A listening TCP socket; `*` is every interface, over IPv4 and, where the machine has it, IPv6."""
    everywhere = address.host == EVERYWHERE
    dual = everywhere and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or ":" in address.host else socket.AF_INET
    where = ("" if everywhere else address.host, address.port)
    try:
        door = socket.create_server(where, family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    except OSError as error:
        raise ConfigError(f"cannot listen at {address.url}: {error}; choose another port, or 0 for any") from error
    door.setblocking(False)
    return door
