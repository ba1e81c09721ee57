"""`lightning-async change tcp://host:port NAME=VALUE ...`: an owner changes a run that goes on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_type_hints

from lightning_async.cli.options import reader
from lightning_async.cli.orders import add_rights, give
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", help="the server's address, tcp://host:port")
    parser.add_argument(
        "values", nargs="+", metavar="NAME=VALUE", help="such as quorum=3; which can be: docs/security.md"
    )
    add_rights(parser)


def run(args: argparse.Namespace) -> int:
    from lightning_async.wire.messages import Order

    values = read(args.values)
    give(args, args.address, Order(what="change", values=values))
    print(f"{args.address} goes on with {', '.join(f'{name}={value!r}' for name, value in values.items())}")
    return 0


def read(words: Sequence[str]) -> dict[str, Any]:
    """The values in words such as "quorum=3", by the types of a configuration. Raises ConfigError."""
    hints, found = get_type_hints(RunConfig), {}
    for word in words:
        name, separator, text = word.partition("=")
        if not separator or name not in hints or name in found:
            raise ConfigError(f"got {word!r}, expected each name once, as name=value, of {', '.join(hints)}")
        try:
            found[name] = text if hints[name] is bool else reader(hints[name])(text)
        except argparse.ArgumentTypeError as error:
            raise ConfigError(f"{name}: {error}") from None
    return found
