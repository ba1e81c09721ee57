"""`lightning-async netem`: a line of a given kind between two programs, or the `tc` commands for a real interface."""

from __future__ import annotations

import argparse
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lightning_async.cli.table import aligned, size
from lightning_async.errors import ConfigError

if TYPE_CHECKING:
    from lightning_async.links import Link

NAMES = "preset, up Mbit/s, down Mbit/s, latency ms, jitter ms, loss, duplicates, brownout, one TCP up, one TCP down"
COLUMNS = NAMES.split(", ")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", metavar="LINK", help="a name, 'cellular(loss=0.02, up_mbps=0.5)', or 'link(up_mbps=2, ...)'; none: "
        "list the names with their numbers"
    )  # fmt: skip
    parser.add_argument("--to", metavar="ADDRESS", help="where the line leads: the server's tcp://host:port")
    parser.add_argument(
        "--listen", default="tcp://127.0.0.1:0", metavar="ADDRESS", help="where to dial instead. Default: a free port "
        "of this machine, which is printed"
    )  # fmt: skip
    parser.add_argument("--public", action="store_true", help="allow --listen to be reached from other machines")
    parser.add_argument("--seed", type=int, default=0, help="of losses, jitter, brownouts and disconnects. Default: 0.")
    parser.add_argument(
        "--print-tc", nargs="?", const="eth0", metavar="DEVICE", help="print `tc` commands for DEVICE (eth0) instead"
    )


def run(args: argparse.Namespace) -> int:
    from lightning_async.links import link

    if args.preset is None:
        print(text())
        return 0
    line = link(args.preset)
    if args.print_tc is not None:
        from lightning_async.links.tc import tc_commands

        print("\n".join(tc_commands(line, args.print_tc)))
        return 0
    if args.to is None:
        raise ConfigError("give --to, the address to which the line leads, or --print-tc")
    return serve(line, args)


def serve(line: Link, args: argparse.Namespace) -> int:
    """Pass bytes on until SIGINT or SIGTERM; the exit code."""
    from lightning_async.transport.shaping import Proxy

    with ExitStack() as undo:
        numbers = (signal.SIGINT, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        undo.callback(signal.pthread_sigmask, signal.SIG_UNBLOCK, numbers)
        proxy = undo.enter_context(Proxy(args.to, line, listen=args.listen, public=args.public, seed=args.seed))
        print(f"{proxy.address} leads to {args.to} over {line.spec}", flush=True)
        signal.sigwait(numbers)
        up, down = proxy.carried_bytes(up=True), proxy.carried_bytes(up=False)
        print(f"{size(up)} up, {size(down)} down, {proxy.lost} segments lost, {proxy.cuts} disconnects", flush=True)
    return 0


def text() -> str:
    """The presets as a table."""
    from lightning_async.links import PRESETS

    return aligned([COLUMNS, *([name, *cells(line)] for name, line in PRESETS.items())])


def cells(line: Link) -> list[str]:
    """A preset's numbers: of the line, and what one TCP connection gets out of it, as docs/networks.md has them."""
    out = line.brownout
    slow = "-" if out is None else f"every {out.every_s:g} s, {out.lasts_s:g} s at {100 * out.factor:g} %"
    return [
        *(f"{value:g}" for value in (line.up_mbps, line.down_mbps, line.latency_ms, line.jitter_ms)),
        *(f"{100 * share:g} %" if share else "-" for share in (line.loss, line.duplicate)),
        slow,
        *(f"{line.bytes_per_s(direction) * 8 / 1e6:.4g}" for direction in ("up", "down")),
    ]
