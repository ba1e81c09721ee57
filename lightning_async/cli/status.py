"""`lightning-async status tcp://host:port`: what a running server does. It asks once, and joins nothing."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", help="the server's address, tcp://host:port")
    parser.add_argument("--json", action="store_true", help="the whole state as one JSON object")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="Default: 10.")


def run(args: argparse.Namespace) -> int:
    from lightning_async.cli.table import text

    state = ask(args.address, args.timeout)
    print(json.dumps(state, indent=2) if args.json else text(state))
    return 0


def ask(address: str, timeout_s: float) -> dict[str, Any]:
    """The state of the server at `address`. Raises UnreachableError when none answers in time."""
    from lightning_async.cli import asking
    from lightning_async.errors import ProtocolError
    from lightning_async.wire.messages import Report, Status

    answer = asking.ask(address, Status(), timeout_s)
    if not isinstance(answer, Report):
        raise ProtocolError(f"{address} answered {str(answer)[:200]}, expected a report")
    return answer.state
