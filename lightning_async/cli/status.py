"""`lightning-async status`: what a running server does, asked once and without joining; or what a state_dir holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lightning_async.errors import ConfigError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", nargs="?", help="the server's address, tcp://host:port")
    parser.add_argument("--state", type=Path, metavar="DIR", help="instead: read this state_dir, no server is needed")
    parser.add_argument("--json", action="store_true", help="the whole state as one JSON object")
    parser.add_argument("--key", metavar="FILE", help="a key of the server's list, for a server with keys")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for an answer. Default: 10.")


def run(args: argparse.Namespace) -> int:
    from lightning_async.cli.table import text

    if (args.address is None) == (args.state is None):
        raise ConfigError("give the address of a server, or --state with the state_dir of a run")
    state = stored(args.state) if args.state is not None else ask(args.address, args.timeout, args.key)
    print(json.dumps(state, indent=2) if args.json else text(state))
    return 0


def stored(folder: Path) -> dict[str, Any]:
    """The state of the run in `folder`, as its server would report it. Raises ConfigError where there is none."""
    from lightning_async.server import report
    from lightning_async.server.history import read_run

    run = read_run(folder).run
    return report.state(run, run.now)


def ask(address: str, timeout_s: float, key: str | None = None) -> dict[str, Any]:
    """The state of the server at `address`. Raises UnreachableError when none answers in time."""
    from lightning_async.cli import asking
    from lightning_async.errors import ProtocolError
    from lightning_async.wire.messages import Report, Status

    answer = asking.ask(address, Status(), timeout_s, asking.key_of(address, key))
    if not isinstance(answer, Report):
        raise ProtocolError(f"{address} answered {str(answer)[:200]}, expected a report")
    return answer.state
