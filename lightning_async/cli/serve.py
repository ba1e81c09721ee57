"""`lightning-async serve`."""

from __future__ import annotations

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--embedded", action="store_true")


def run(args: argparse.Namespace) -> int:
    from lightning_async.cli import embedded

    return embedded.run()
