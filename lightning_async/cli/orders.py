"""`lightning-async revoke`, `stop` and `snapshot`: what only a server's owner may do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_async.cli.keys import add_folder, folder_of
from lightning_async.errors import ConfigError

if TYPE_CHECKING:
    from lightning_async.wire.messages import Order


def add_rights(parser: argparse.ArgumentParser) -> None:
    """The options that say by what right one orders."""
    parser.add_argument("--key", metavar="FILE", help="an owner's key, for a server with keys")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="the server's own: the owner's token lies there")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for an answer. Default: 10.")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", help="the server's address, tcp://host:port")
    add_rights(parser)


def add_revoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="whose key is to be worth nothing from now on")
    parser.add_argument("--server", metavar="ADDRESS", help="ask this server, instead of editing its list here")
    add_folder(parser)
    add_rights(parser)


def run_stop(args: argparse.Namespace) -> int:
    from lightning_async.wire.messages import Order

    give(args, args.address, Order(what="stop"))
    print(f"{args.address} tells its workers and stops")
    return 0


def run_snapshot(args: argparse.Namespace) -> int:
    from lightning_async.wire.messages import Order

    give(args, args.address, Order(what="snapshot"))
    print(f"{args.address} writes a snapshot")
    return 0


def run_revoke(args: argparse.Namespace) -> int:
    from lightning_async.transport.allowed import revoke
    from lightning_async.wire.messages import Order

    if args.server is None:
        revoke(folder_of(args), args.name)
    else:
        give(args, args.server, Order(what="revoke", name=args.name))
    print(f"the key of {args.name} is revoked; a server that runs notices within a second")
    return 0


def give(args: argparse.Namespace, address: str, order: Order) -> None:
    """Have it done. Raises ConfigError with the server's reason when it is not."""
    from dataclasses import replace

    from lightning_async.cli.asking import ask, key_of
    from lightning_async.cli.owner import token_in
    from lightning_async.wire.messages import Refused

    if args.state_dir is not None:
        order = replace(order, token=token_in(args.state_dir.expanduser()))
    answer = ask(address, order, args.timeout, key_of(address, args.key, orders=True))
    if isinstance(answer, Refused):
        raise ConfigError(answer.detail)
