"""`lightning-async pardon tcp://host:port NAME --state-dir DIR`: end a worker's quarantine. Only the owner may."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", help="the server's address, tcp://host:port")
    parser.add_argument("worker", help="the worker's name, as `status` shows it")
    parser.add_argument(
        "--state-dir", type=Path, required=True, metavar="DIR", help="the server's own: the owner's token lies there"
    )
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="Default: 10.")


def run(args: argparse.Namespace) -> int:
    from lightning_async.cli.asking import ask
    from lightning_async.cli.owner import token_in
    from lightning_async.errors import ConfigError
    from lightning_async.wire.messages import Pardon, Refused

    order = Pardon(worker=args.worker, token=token_in(args.state_dir.expanduser()))
    answer = ask(args.address, order, args.timeout)
    if isinstance(answer, Refused):
        raise ConfigError(answer.detail)
    print(f"{args.worker} is in again")
    return 0
