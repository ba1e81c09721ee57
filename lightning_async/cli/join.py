"""`lightning-async join LINE`: turn an invitation into a key of this machine's user.

The new key is on the disk before the server hears of it, so a `join` that is cut off can be said again: the invitation
is used up by this key alone. It stays there until the server has said that it does not take it.
"""

from __future__ import annotations

import argparse
import socket
import sys
from dataclasses import replace
from pathlib import Path

from lightning_async.errors import ConfigError, ProtocolError, RefusedError
from lightning_async.transport import invitations
from lightning_async.transport.keys import Key, file_for, read_key, write_key
from lightning_async.wire.reasons import Reason


class TurnedDown(RefusedError):
    """By a server that has read what was asked."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("line", help="as `invite` printed it, tcp://host:port/KEY/TOKEN; - reads it from stdin")
    parser.add_argument("--name", default="", help="where the invitation leaves it open. Default: this machine's.")
    parser.add_argument("--address", help="where to dial instead, for example the near end of a tunnel")
    parser.add_argument("--key", type=Path, metavar="FILE", help="where to write it. Default: the address's usual one")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for an answer. Default: 10.")


def run(args: argparse.Namespace) -> int:
    line = invitations.read(sys.stdin.readline() if args.line == "-" else args.line)
    address = args.address or line.address
    path = (args.key or file_for(address)).expanduser()
    if _is_there(path):
        raise ConfigError(f"{path} is a key already; give another --key FILE, or remove it")
    first = not _aside(path).exists()
    try:
        key = enrolled(_begun(path, line, address), line.token, args.name or _own_name(), args.timeout)
    except RefusedError as error:
        if error.reason == Reason.KEY.value and (first or isinstance(error, TurnedDown)):
            _aside(path).unlink()  # else the server may have it on its list
        text = f"{error.detail}. Was this line used already, or has it expired?"
        raise RefusedError(error.reason, text) from error
    write_key(path, key)
    _aside(path).unlink()
    many = f", for up to {key.workers} workers" if key.workers > 1 else ""
    print(f"{key.role} {key.name!r} may join {address}{many}; the key is in {path}")
    print(f'AsyncWANStrategy("{address}")' + (f'  # with key="{path}"' if args.key else ""))
    return 0


def enrolled(key: Key, token: str, name: str, timeout_s: float) -> Key:
    """`key` with the name and role that the server gives it. Raises RefusedError, UnreachableError."""
    from lightning_async.cli.asking import ask
    from lightning_async.wire.messages import Enrol, Enrolled, Refused

    answer = ask(key.address, Enrol(token=token, name=name), timeout_s, key)
    if isinstance(answer, Refused):
        raise TurnedDown(answer.reason, f"{key.address} does not take this key: {answer.detail}")
    if not isinstance(answer, Enrolled):
        raise ProtocolError(f"{key.address} answered {type(answer).__name__}, expected Enrolled")
    return replace(key, name=answer.name, role=answer.role, workers=answer.workers)


def _begun(path: Path, line: invitations.Line, address: str) -> Key:
    """A new key, or the one of a `join` to this server that did not come to its end."""
    from lightning_async.transport.zeromq_curve import new_pair

    aside = _aside(path)
    if aside.exists():
        found = read_key(aside)
        if found.server == line.server:
            return replace(found, address=address)
        aside.unlink()
    key = Key("", "", new_pair(), line.server, address)
    write_key(aside, key)
    return key


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; --key FILE says where else to put it") from error


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.joining")


def _own_name() -> str:
    host = socket.gethostname().partition(".")[0]
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in host)[:64].strip("-")
