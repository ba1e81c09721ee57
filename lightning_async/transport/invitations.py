"""Invitations: a token that makes one unknown key a known one, once, until it expires.

The server's folder holds a file for each: the token's hash, never the token, and what it is good for. The line that a
person passes on names the server's address and public key beside the token, so the token is only ever sent, encrypted,
to the server that it is for, over a line on which the new key has proved that it is its bearer's.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_async.errors import ConfigError
from lightning_async.files import read_private, write_private
from lightning_async.transport.addresses import parse
from lightning_async.transport.allowed import MOST_WORKERS, NAME, Caller, alone
from lightning_async.transport.keys import read_hex

FOLDER = "invitations"
ROLES = ("worker", "observer", "owner")
_TOKEN = re.compile(r"([0-9a-f]{12})-([0-9a-f]{32})", re.ASCII)


@dataclass(frozen=True)
class Line:
    """What stands in a join line: `tcp://host:port/<server's public key>/<token>`."""

    address: str
    server: bytes
    token: str

    def __repr__(self) -> str:
        return f"<Line to {self.address}>"

    @property
    def text(self) -> str:
        return f"{self.address}/{self.server.hex()}/{self.token}"


@dataclass(frozen=True)
class _Invitation:
    hash: str
    name: str  # "": the guest chooses
    role: str
    workers: int
    expires: float


def read(text: str) -> Line:
    """The line that `invite` printed. Raises ConfigError, which does not repeat it."""
    parts = text.strip().rsplit("/", 2)
    try:
        address, server, token = parts
        if _TOKEN.fullmatch(token) is None:
            raise ValueError
        return Line(parse(address).url, read_hex(server), token)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("this is no join line: expected tcp://host:port/KEY/TOKEN as `invite` printed it") from None


def invite(folder: Path, caller: Caller, ttl_s: float, now: float) -> str:
    """A new token for a key with the role of `caller`, and its name unless that is empty. `now` is the time of day."""
    if caller.role not in ROLES or not 1 <= caller.workers <= MOST_WORKERS or not 0 < ttl_s < 366 * 86_400:
        raise ConfigError(f"got {caller} for {ttl_s:g} s; roles are {', '.join(ROLES)}, a year is the longest")
    if caller.name and NAME.fullmatch(caller.name) is None:
        raise ConfigError(f"got the name {caller.name!r}; letters, digits, dots, dashes and underscores make one")
    _sweep(folder, now)
    number, secret = secrets.token_hex(6), secrets.token_hex(16)
    made = _Invitation(_hash(secret), caller.name, caller.role, caller.workers, now + ttl_s)
    write_private(folder / FOLDER / f"{number}.json", json.dumps(asdict(made)))
    return f"{number}-{secret}"


def expects(folder: Path, key: bytes, now: float) -> bool:
    """Whether an invitation waits for `key`: one that nobody has used, or one that was being used by this very key when
    its server died."""
    waiting = [path for path in (folder / FOLDER).glob("*.json") if _user(_used(path)) in ("", key.hex())]
    return any(now < found.expires for path in waiting if (found := _read(path)) is not None)


def redeem(folder: Path, token: str, key: bytes, name: str, now: float) -> Caller:
    """Who `key` is to be from now on; the token is used up, but for this very key, whose answer may have been lost.

    Raises ConfigError for a token that is unknown, expired or another key's. Whether `name` is free is not its task.
    """
    words = _TOKEN.fullmatch(token)
    path = folder / FOLDER / f"{words[1] if words else 'x'}.json"
    found = _read(path)
    right = hmac.compare_digest(_hash(words[2] if words else ""), found.hash if found is not None else _hash("nobody"))
    if found is None or not right:
        raise ConfigError("this invitation is not known here; ask the server's owner for another one")
    if now >= found.expires:
        raise ConfigError("this invitation has expired; ask the server's owner for another one")
    if _claimed(folder, _used(path), key) != key.hex():
        raise ConfigError("this invitation has been used; every key needs its own")
    return Caller(found.name or name, found.role, found.workers)


def release(folder: Path, token: str) -> None:
    """What `redeem` used up was not used after all: the name was taken."""
    _used(folder / FOLDER / token.partition("-")[0]).unlink(missing_ok=True)


def finish(folder: Path, token: str, key: bytes) -> None:
    """`key` is on the list: who takes it out by hand does not want it back by the same invitation."""
    write_private(_used(folder / FOLDER / token.partition("-")[0]), f"{key.hex()} is on the list")


def _claimed(folder: Path, path: Path, key: bytes) -> str:
    """Whose the invitation is: the first key's that asks. Raises ConfigError where that cannot be written down."""
    with alone(folder):
        if not _user(path):
            write_private(path, key.hex())
    return _user(path)


def _used(path: Path) -> Path:
    return path.with_suffix(".used")


def _user(path: Path) -> str:
    """The key that has begun to use an invitation, in hexadecimal digits; empty for none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _sweep(folder: Path, now: float) -> None:
    for path in (folder / FOLDER).glob("*.json"):
        found = _read(path)
        if found is not None and now >= found.expires:
            path.unlink(missing_ok=True)
            _used(path).unlink(missing_ok=True)


def _read(path: Path) -> _Invitation | None:
    try:
        return _Invitation(**json.loads(read_private(path)))
    except (ConfigError, ValueError, TypeError):
        return None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
