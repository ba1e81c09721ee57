"""Keys and the files that hold them: one pair for the server, one for each worker, observer and owner.

A pair is 32 + 32 bytes of Curve25519; what makes and uses them is transport/zeromq_curve.py. A file with a secret in it
is for its owner alone (mode 600): one that others can read is refused, never used. Secrets stand in no repr, log,
event, status or message.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_async.errors import ConfigError
from lightning_async.files import read_private, write_private
from lightning_async.transport.addresses import is_loopback, parse

VARIABLE = "LIGHTNING_ASYNC_KEY"
NONE = "none"  # in place of a file: no key, on purpose
SERVER_FILE, OWNER_FILE = "server.key", "owner.key"
KEY_BYTES = 32
HOW_TO_JOIN = (
    "Its owner makes a line with `lightning-async invite`, and `lightning-async join LINE` makes a key of it here"
)


@dataclass(frozen=True)
class Pair:
    """A key pair, 32 bytes each."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Key:
    """What a peer needs to speak with a server that has keys: its own pair and the server's public key.

    `name`, `role` and `workers` are what the server knows it by; `address` is where it was enrolled.
    """

    name: str
    role: str
    pair: Pair
    server: bytes
    address: str = ""
    workers: int = 1

    def worker_name(self, wanted: str, rank: int) -> str:
        """The name of the worker of this rank. Raises ConfigError when `wanted` is another's."""
        name = wanted or (self.name if rank == 0 else f"{self.name}/{rank}")
        if name != self.name and not name.startswith(f"{self.name}/"):
            raise ConfigError(
                f"name: got {wanted!r}; the key says {self.name!r}, and a key bears no other name. Leave name= out"
            )
        return name


def config_dir() -> Path:
    """Where a user's keys lie: $XDG_CONFIG_HOME/lightning_async, by default ~/.config/lightning_async."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "lightning_async"


def server_dir() -> Path:
    """Where a server's keys lie when nobody says otherwise."""
    return config_dir() / "server"


def file_for(address: str) -> Path:
    """Where the key for the server at `address` lies when nobody says otherwise. Raises ConfigError for a bad URL."""
    place = parse(address)
    return config_dir() / f"{place.host.replace(':', '_')}-{place.port}.key"


def key_for(address: str, given: str | Path | None = None) -> Key | None:
    """The key to speak with `address`: `given`, or the environment's, or the one that was made for this address.

    None where the line is to be plain: on purpose ("none"), or to this machine when there is no key for it. Raises
    ConfigError for a file that cannot be used, and for an address beyond this machine without a key.
    """
    if not address.startswith("tcp://"):
        return None
    chosen = given or os.environ.get(VARIABLE)
    if chosen:
        return None if str(chosen) == NONE else read_key(Path(chosen).expanduser())
    usual = file_for(address)
    if usual.exists():
        return read_key(usual)
    if is_loopback(parse(address).host):
        return None
    raise ConfigError(
        f"no key for {address}: looked for key=, ${VARIABLE} and {usual}. {HOW_TO_JOIN}. A server without keys, inside "
        f'a network that you trust, is joined with key="{NONE}"'
    )


def read_key(path: Path) -> Key:
    """The key in a file that `write_key` made. Raises ConfigError."""
    values = _read(path)
    try:
        pair = Pair(read_hex(values["public"]), read_hex(values["secret"]))
        return Key(
            str(values["name"]),
            str(values["role"]),
            pair,
            read_hex(values["server"]),
            str(values.get("address", "")),
            int(values.get("workers", 1)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} holds no key: {error}; `lightning-async join` makes one") from None


def write_key(path: Path, key: Key) -> None:
    """Write a new file, for the owner alone. Raises ConfigError when there is one already."""
    values = {
        "name": key.name,
        "role": key.role,
        "address": key.address,
        "workers": key.workers,
        "server": key.server.hex(),
        "public": key.pair.public.hex(),
        "secret": key.pair.secret.hex(),
    }
    _write_new(path, values)


def read_server(folder: Path) -> Pair:
    """The server's own pair. Raises ConfigError."""
    path = folder / SERVER_FILE
    if not path.exists():
        raise ConfigError(f"no {path}; `lightning-async keys server --keys {folder}` makes one")
    values = _read(path)
    try:
        return Pair(read_hex(values["public"]), read_hex(values["secret"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} holds no key: {error}; give the folder that `keys server` made") from None


def write_server(folder: Path, pair: Pair) -> None:
    """As `write_key`, for the server's own pair."""
    _write_new(folder / SERVER_FILE, {"public": pair.public.hex(), "secret": pair.secret.hex()})


def read_hex(text: Any) -> bytes:
    """A public or secret key as its 64 hexadecimal digits. Raises ValueError."""
    found = bytes.fromhex(text) if isinstance(text, str) else b""
    if len(found) != KEY_BYTES:
        raise ValueError(f"a key is {2 * KEY_BYTES} hexadecimal digits")
    return found


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(read_private(path))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not what `lightning-async join` or `keys` writes") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not what `lightning-async join` or `keys` writes")
    return values


def _write_new(path: Path, values: Mapping[str, Any]) -> None:
    if path.exists():
        raise ConfigError(f"{path} is there already; remove it, or give another file")
    write_private(path, json.dumps(dict(values), indent=1) + "\n")
