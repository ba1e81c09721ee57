"""`lightning-async status`."""

from __future__ import annotations

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address")


def run(args: argparse.Namespace) -> int:
    return 1
