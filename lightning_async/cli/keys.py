"""`lightning-async keys` and `invite`: keys of a server and of workers, and lines with which others join."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

from lightning_async.errors import ConfigError
from lightning_async.files import read_private, write_private
from lightning_async.transport import allowed, invitations
from lightning_async.transport.allowed import Caller
from lightning_async.transport.keys import (
    OWNER_FILE,
    Key,
    file_for,
    read_hex,
    read_server,
    server_dir,
    write_key,
    write_server,
)

ADDRESS_FILE = "address"  # where the server with these keys listened the last time
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_folder(parser: argparse.ArgumentParser) -> None:
    """The option that says where a server's keys lie."""
    text = "folder of the server's keys. Default: ~/.config/lightning_async/server"
    parser.add_argument("--keys", type=Path, metavar="DIR", help=text)


def folder_of(args: argparse.Namespace) -> Path:
    return args.keys.expanduser() if args.keys is not None else server_dir()


def add(parser: argparse.ArgumentParser) -> None:
    whose = parser.add_subparsers(dest="whose", required=True, metavar="server|worker")
    server = whose.add_parser("server", help="a server's keys, an empty list of keys, and its owner's key")
    add_folder(server)
    worker = whose.add_parser("worker", help="a worker's key by hand, without an invitation")
    worker.add_argument("name", help="its name in the run")
    worker.add_argument("--address", required=True, help="where it dials, tcp://host:port")
    worker.add_argument("--server-key", required=True, metavar="HEX", help="the server's public key")
    worker.add_argument("--key", type=Path, metavar="FILE", help="where to write it. Default: the address's usual one")


def run(args: argparse.Namespace) -> int:
    from lightning_async.transport.zeromq_curve import new_pair

    pair = new_pair()
    if args.whose == "server":
        folder = folder_of(args)
        write_server(folder, pair)
        allowed.begin(folder)
        owner = Key("owner", "owner", new_pair(), pair.public)
        allowed.allow(folder, owner.pair.public, Caller("owner", "owner"))
        write_key(folder / OWNER_FILE, owner)
        print(f"the server's keys are in {folder}, its public key is {pair.public.hex()}")
        print("let a worker in: lightning-async invite NAME --address tcp://HOST:PORT; who is in: allowed.txt there")
        return 0
    path = args.key or file_for(args.address)
    try:
        key = Key(args.name, "worker", pair, read_hex(args.server_key), args.address)
    except ValueError as error:
        raise ConfigError(f"--server-key: {error}") from None
    write_key(path.expanduser(), key)
    print(f"the key is in {path}; for the server's allowed.txt:\n{args.name}  worker  {pair.public.hex()}")
    return 0


def add_invite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="", help="of the new key; without it who joins chooses")
    parser.add_argument("--role", choices=invitations.ROLES, default="worker", help="Default: worker.")
    parser.add_argument("--workers", type=int, default=1, help="how many workers may bear the key's name. Default: 1.")
    parser.add_argument("--ttl", default="24h", help="how long the line is good for: 90s, 30m, 24h, 7d. Default: 24h.")
    parser.add_argument("--address", help="where to dial. Default: where the server listened last.")
    add_folder(parser)


def run_invite(args: argparse.Namespace) -> int:
    folder = folder_of(args)
    pair, address = read_server(folder), args.address or last_address(folder)
    token = invitations.invite(folder, Caller(args.name, args.role, args.workers), seconds(args.ttl), time.time())
    line = invitations.Line(address, pair.public, token)
    print(f"lightning-async join {line.text}")
    return 0


def seconds(text: str) -> float:
    """Of a duration such as 90s, 30m, 24h, 7d. Raises ConfigError."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text.strip(), re.ASCII)
    if found is None:
        raise ConfigError(f"--ttl: got {text!r}, expected a number and s, m, h or d, such as 24h")
    return int(found[1]) * float(UNITS[found[2]])


def last_address(folder: Path) -> str:
    """Where the server with these keys listened the last time. Raises ConfigError when it never has."""
    path = folder / ADDRESS_FILE
    if not path.exists():
        raise ConfigError("give --address tcp://HOST:PORT, as workers will dial it: this server has not run yet")
    return read_private(path).strip()


def note_address(folder: Path, address: str) -> None:
    """For later invitations, and so that `status` on this machine finds the owner's key."""
    write_private(folder / ADDRESS_FILE, address + "\n")
