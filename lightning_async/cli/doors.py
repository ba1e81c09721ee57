"""The doors of a server: from the place where it listens, at one address or several, to a listener."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from lightning_async.cli.keys import note_address
from lightning_async.cli.place import Place
from lightning_async.errors import ConfigError
from lightning_async.files import read_private
from lightning_async.transport import Listener, listen
from lightning_async.transport.addresses import is_loopback, parse
from lightning_async.transport.door import Door
from lightning_async.transport.keys import server_dir
from lightning_async.transport.several import several
from lightning_async.transport.xmlrpc_server import place as http_place


def listening(place: Place) -> Listener:
    """A listener at each address of `place`, for those whom it lets in; `note_address` is told of the one with keys.

    Raises ConfigError for what cannot be used; nothing listens then.
    """
    with ExitStack() as undo:
        found, wanted = [], _addresses(place)
        door = _door(wanted, place)
        for address in wanted:
            found.append(undo.enter_context(closing(listen(address, **_options(address, place, door)))))
        if door is not None:
            note_address(door.folder, found[0].address)
        undo.pop_all()
        return several(found)


def is_far(place: Place) -> bool:
    """Whether workers come from other machines."""
    return any(_is_far(address) for address in _addresses(place))


def _addresses(place: Place) -> list[str]:
    return [part.strip() for part in place.address.split(",")]


def _is_far(address: str) -> bool:
    if _is_http(address):
        return not is_loopback(http_place(address)[0].host)
    return address.startswith("tcp://") and not is_loopback(parse(address).host)


def _door(addresses: Sequence[str], place: Place) -> Door | None:
    """The one of all addresses, where one of them needs keys: what comes in by another must not pass for a key's."""
    folder = Path(place.keys).expanduser() if place.keys else server_dir()
    far = any(_is_far(address) for address in addresses if not _is_http(address))
    if not place.keys and (place.public or not far or not folder.exists()):
        return None
    if any(_is_http(address) for address in addresses):
        raise ConfigError("a server with keys takes nobody over HTTP, which has none: leave the http address out")
    return Door(folder)


def _is_http(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _options(address: str, place: Place, door: Door | None) -> dict[str, Any]:
    """What the transport is told of who may come in."""
    if _is_http(address):
        return _http_options(address, place)
    if not address.startswith("tcp://"):
        return {}
    return {"public": place.public, "keys": door}


def _http_options(address: str, place: Place) -> dict[str, Any]:
    secure = address.startswith("https://")
    token = read_private(Path(place.http_token).expanduser()).strip() if place.http_token else ""
    if place.http_token and not token:
        raise ConfigError(f"{place.http_token} holds no token: write some random text into it")
    certificate, clients = (
        Path(x).expanduser() if x and secure else None for x in (place.http_certificate, place.http_clients)
    )
    return {"public": place.public, "token": token, "certificate": certificate, "clients": clients}
