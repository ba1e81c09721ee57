"""`lightning-async <command>`: the table of subcommands. Each is a file here, with `add(parser)` and `run(args)`.

Rule of this folder: what is slow to import (torch) is imported when a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_async.cli import (
    change,
    doctor,
    join,
    keys,
    netem,
    orders,
    pardon,
    plan,
    replay,
    resume,
    serve,
    simulate,
    status,
)
from lightning_async.errors import AsyncWANError, CallerError


@dataclass(frozen=True)
class Command:
    """One subcommand: its line in the help, its options, and what it does (the exit code)."""

    help: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS: dict[str, Command] = {
    "serve": Command("run a parameter server", serve.add, serve.run),
    "status": Command("show what a running server does", status.add, status.run),
    "resume": Command("serve the run in a state_dir again", resume.add, resume.run),
    "replay": Command("replay a run's journal, as it was or as it might have been", replay.add, replay.run),
    "simulate": Command("simulate a run in virtual time", simulate.add, simulate.run),
    "plan": Command("recommend round length, codec and quorum", plan.add, plan.run),
    "doctor": Command("examine the way to a server, and say what a round costs on it", doctor.add, doctor.run),
    "netem": Command("put a slow or bad line between two programs", netem.add, netem.run),
    "keys": Command("make the keys of a server, or of a worker by hand", keys.add, keys.run),
    "invite": Command("print a line with which one other person joins", keys.add_invite, keys.run_invite),
    "join": Command("turn an invitation into a key", join.add, join.run),
    "revoke": Command("make a key worth nothing, as the server's owner", orders.add_revoke, orders.run_revoke),
    "stop": Command("stop a server, as its owner", orders.add, orders.run_stop),
    "snapshot": Command("have a server write a snapshot, as its owner", orders.add, orders.run_snapshot),
    "change": Command("change what can be changed of a run that goes on, as its owner", change.add, change.run),
    "pardon": Command("end the quarantine of a worker, as the server's owner", pardon.add, pardon.run),
}


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    main = argparse.ArgumentParser(
        prog="lightning-async", description="Train one model on machines that are far apart, unequal and unreliable."
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        command.add(commands.add_parser(name, help=command.help, description=command.help.capitalize() + "."))
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 2 for a wrong argument or configuration, 1 for anything else that went wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(words, argparse.Namespace(words=words))
    try:
        code = COMMANDS[args.command].run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if _is_read():
            raise
        return 0  # whoever read our output, as `head` does, has enough of it
    except AsyncWANError as error:
        print(f"lightning-async {args.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, CallerError) else 1


def _is_read() -> bool:
    """Whether our output still goes somewhere; if not, what is left of it goes nowhere."""
    try:
        print(flush=True)  # to flush does not tell: without a buffer, what could not be written is forgotten
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return False
    return True
