"""Runs whose results are kept in a file, one JSON object a line: what is in it already is not run again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Run = Callable[[], Mapping[str, Any]]


class Kept:
    """`row(key, run)` is what is kept under `key`, or what `run()` finds, which is then kept and printed."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self._rows = [json.loads(line) for line in lines]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def row(self, key: Mapping[str, Any], run: Run) -> dict[str, Any]:
        for known in self._rows:
            if all(known.get(name) == value for name, value in key.items()):
                return dict(known)
        made = {**key, **run()}
        self._rows.append(made)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(made) + "\n")
        print(json.dumps({name: value for name, value in made.items() if name != "curve"}), flush=True)
        return made
