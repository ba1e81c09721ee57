"""`lightning-async resume --state DIR`: serve the run in a state_dir again, as it was configured."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from lightning_async.cli import serve
from lightning_async.cli.options import add_fields, given
from lightning_async.cli.place import Place
from lightning_async.errors import ConfigError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="the state_dir of the run")
    parser.add_argument("--check", action="store_true", help="only read it, and say what would be resumed")
    parser.add_argument(
        "--cut", type=int, metavar="N", help="first forget what the journal has after record N, where that is damaged: "
        "updates that were acknowledged are given up"
    )  # fmt: skip
    serve.add_supervision(parser)
    add_fields(parser, Place, "place", without={"state_dir", "run"})


def run(args: argparse.Namespace) -> int:
    from lightning_async.server.history import read_run, stored_config

    if args.cut is not None and args.supervise:
        raise ConfigError("--cut and --supervise: cut first, with --check, then supervise; a cut is not to be repeated")
    if args.cut is not None:
        cut(args.state, args.cut)
    config, name = stored_config(args.state)
    if args.check:
        coordinator = read_run(args.state)
        print(f"{coordinator!r}\nrun {name!r} with {config}")
        return 0
    place = Place(**given(args, Place))
    return serve.served(config, replace(place, state_dir=str(args.state), run=name), args)


def cut(folder: Path, number: int) -> None:
    """Forget the records after `number`. Raises JournalError without a journal, LockedError beside a server."""
    from lightning_async.persistence import Lock, open_journal

    open_journal(folder, writing=False).close()
    lock = Lock(folder)
    journal = open_journal(folder)
    try:
        gone = journal.cut_after(number)
    finally:
        journal.close()
        lock.close()
    print(f"gave up {gone} records after record {number}; what workers do not hold any more of them is lost")
