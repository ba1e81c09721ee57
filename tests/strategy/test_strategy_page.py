"""docs/strategy.md has every argument with its default, and every variable of the environment that means something."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from lightning_async import AsyncOptimizer, AsyncWANStrategy, RunConfig, StateDir

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "strategy.md").read_text()
RUN = {field.name: field.default for field in fields(RunConfig)}


def arguments(kind: type) -> Mapping[str, object]:
    """Name -> default, but for `self`."""
    found = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return {name: parameter.default for name, parameter in found.items() if name != "self"}


def told(title: str) -> dict[str, str]:
    """Name -> default in the table under a heading."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| `([^|`]*)` \|", section, re.MULTILINE)
    return {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}


def shown(value: object) -> str:
    return "none" if value is None else str(value)


def test_every_argument_of_the_strategy_has_a_row_with_its_default() -> None:
    expected = {name: shown(RUN.get(name, default)) for name, default in arguments(AsyncWANStrategy).items()}
    assert told("Of the run") | told("Of this worker") == expected
    assert told("Of the run").keys() <= RUN.keys() | {"mode", "validation"}


def test_what_only_a_server_has_is_the_rest_of_the_configuration() -> None:
    rest = {name: shown(default) for name, default in RUN.items() if name not in arguments(AsyncWANStrategy)}
    assert told("What only a server has") == rest


def test_the_other_public_names_are_as_the_page_says() -> None:
    given = ", ".join(f"{f.name}" if f.name == "path" else f"{f.name}={f.default}" for f in fields(StateDir))
    assert f"`StateDir({given})`" in PAGE
    text = PAGE[PAGE.index("`AsyncOptimizer(") :].partition("\n\n")[0]
    assert set(re.findall(r"\w+", text)) >= arguments(AsyncOptimizer).keys()


def test_every_variable_is_told_of() -> None:
    sources = (path.read_text() for path in (ROOT / "lightning_async").rglob("*.py"))
    used = {name for text in sources for name in re.findall(r"LIGHTNING_ASYNC_[A-Z_]*[A-Z]", text)}
    assert used == set(re.findall(r"LIGHTNING_ASYNC_[A-Z_]*[A-Z]", PAGE))
