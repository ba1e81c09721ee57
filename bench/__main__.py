"""Prints every measurement as one JSON object per line: `python -m bench [module ...]`.

A module of this folder takes part by having `rows()`, which yields one dictionary per measurement:
  bench      what was measured            ours, reference   the two values, taken in one run
  unit       of both values               ratio             how ours compares with the reference
  floor      the least (or, where `lower` is true, the most) that `ratio` should be
and whatever else helps to read it.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

FIELDS = ("bench", "ours", "reference", "floor", "unit", "ratio")


def modules() -> list[str]:
    """Names of the modules in this folder."""
    names = (info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in names if not name.startswith("_"))


def measure(name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of module `name`; none when it measures nothing. Raises ValueError for a row without all FIELDS."""
    rows: Callable[[], Iterator[Mapping[str, Any]]] | None = getattr(
        importlib.import_module(f"bench.{name}"), "rows", None
    )
    for row in rows() if rows else ():
        missing = [field for field in FIELDS if field not in row]
        if missing:
            raise ValueError(f"bench.{name} gave a row without {', '.join(missing)}: {row}")
        yield row


def main(wanted: list[str]) -> None:
    known = modules()
    strange = [name for name in wanted if name not in known]
    if strange:
        raise SystemExit(f"unknown: {', '.join(strange)}; known: {', '.join(known)}")
    out = sys.stdout
    with redirect_stdout(sys.stderr):  # what is measured may print: stdout is for rows
        for name in wanted or known:
            for row in measure(name):
                print(json.dumps(row), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
