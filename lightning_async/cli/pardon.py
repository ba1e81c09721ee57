"""`lightning-async pardon tcp://host:port NAME`: end a worker's quarantine. Only the owner may."""

from __future__ import annotations

import argparse

from lightning_async.cli.orders import add_rights, give


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", help="the server's address, tcp://host:port")
    parser.add_argument("worker", help="the worker's name, as `status` shows it")
    add_rights(parser)


def run(args: argparse.Namespace) -> int:
    from lightning_async.wire.messages import Order

    give(args, args.address, Order(what="pardon", name=args.worker))
    print(f"{args.worker} is in again")
    return 0
