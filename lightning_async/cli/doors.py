"""Where a server listens, at one address or several, and who may come in: from plain values to a listener."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_async.cli.keys import note_address
from lightning_async.errors import ConfigError
from lightning_async.transport import Listener, listen
from lightning_async.transport.addresses import is_loopback, parse
from lightning_async.transport.door import Door
from lightning_async.transport.keys import read_private, server_dir
from lightning_async.transport.several import several


@dataclass(frozen=True)
class Guards:
    """Who may come in. `keys`: folder of the server's keys; `public`: do without beyond this machine. `token` (a file),
    `certificate` and `clients` (PEM files) are those of HTTP."""

    public: bool = False
    keys: str | None = None
    token: str | None = None
    certificate: str | None = None
    clients: str | None = None


def listening(addresses: str, guards: Guards) -> Listener:
    """A listener at each of the addresses, which are separated by commas; `note_address` is told of the one with keys.

    Raises ConfigError for what cannot be used; nothing listens then.
    """
    with ExitStack() as undo:
        found = []
        wanted = [part.strip() for part in addresses.split(",")]
        door = _door(wanted, guards)
        for address in wanted:
            found.append(undo.enter_context(closing(listen(address, **_options(address, guards, door)))))
        if door is not None:
            note_address(door.folder, found[0].address)
        undo.pop_all()
        return several(found)


def _door(addresses: Sequence[str], guards: Guards) -> Door | None:
    """The one of all addresses, where one of them needs keys: what comes in by another must not pass for a key's."""
    folder = Path(guards.keys).expanduser() if guards.keys else server_dir()
    far = [a for a in addresses if a.startswith("tcp://") and not is_loopback(parse(a).host)]
    if not guards.keys and (guards.public or not far or not folder.exists()):
        return None
    if any(_is_http(address) for address in addresses):
        raise ConfigError("a server with keys takes nobody over HTTP, which has none: leave the http address out")
    return Door(folder)


def _is_http(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _options(address: str, guards: Guards, door: Door | None) -> dict[str, Any]:
    """What the transport is told of who may come in."""
    if _is_http(address):
        return _http_options(address, guards)
    if not address.startswith("tcp://"):
        return {}
    return {"public": guards.public, "keys": door}


def _http_options(address: str, guards: Guards) -> dict[str, Any]:
    secure = address.startswith("https://")
    token = read_private(Path(guards.token).expanduser()).strip() if guards.token else ""
    if guards.token and not token:
        raise ConfigError(f"{guards.token} holds no token: write some random text into it")
    certificate, clients = (
        Path(x).expanduser() if x and secure else None for x in (guards.certificate, guards.clients)
    )
    return {"public": guards.public, "token": token, "certificate": certificate, "clients": clients}
