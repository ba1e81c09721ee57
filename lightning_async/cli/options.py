"""Options that are made from the fields of a configuration dataclass: names, types, defaults and help have one source.

The help of a field is its entry under `Args:` in the dataclass's docstring. An option that was not given stays out of
the result, so that a file below the command line keeps its value.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Collection
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lightning_async.config import SPECS

_ENTRY = re.compile(r"^( {4,})(\w+): (.*)$")


def descriptions(kind: type) -> dict[str, str]:
    """Field name -> what the docstring of `kind` says about it under `Args:`, on one line."""
    _, _, block = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")
    found: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        entry = _ENTRY.match(line)
        if entry is not None and len(entry[1]) == 4:
            name = entry[2]
            found[name] = entry[3]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def add_fields(parser: argparse.ArgumentParser, kind: type, title: str, without: Collection[str] = ()) -> None:
    """One option for each field of the dataclass `kind` but those `without`; a boolean field becomes a flag."""
    group = parser.add_argument_group(title)
    hints, help_of = get_type_hints(kind), descriptions(kind)
    hints |= {name: str for name in SPECS if name in hints}  # whose "none" is the codec of that name
    for field in fields(kind):
        if field.name in without:
            continue
        text = f"{help_of.get(field.name, '')} Default: {_shown(field.default)}.".strip()
        shape: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if hints[field.name] is not bool:
            shape = {"type": reader(hints[field.name]), "metavar": _metavar(hints[field.name])}
        flag = f"--{field.name.replace('_', '-')}"
        group.add_argument(flag, dest=field.name, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **shape)


def given(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields of `kind` that were given on the command line."""
    return {field.name: getattr(args, field.name) for field in fields(kind) if hasattr(args, field.name)}


def reader(hint: Any) -> Callable[[str], Any]:
    """What reads a value of annotation `hint` from text: str, int, float, Literal, None, and unions of them."""

    def read(text: str) -> Any:
        for part in _parts(hint):
            try:
                return _read(part, text)
            except ValueError:
                continue
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {_metavar(hint)}")

    return read


def _parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union; text last, since it takes everything."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(sorted(parts, key=lambda part: part is str))


def _read(hint: Any, text: str) -> Any:
    if hint is NoneType and text.lower() == "none":
        return None
    if get_origin(hint) is Literal and text in get_args(hint):
        return text
    if hint in (int, float, str):
        return hint(text)
    raise ValueError(text)


def _metavar(hint: Any) -> str:
    names = {int: "N", float: "X", str: "TEXT", NoneType: "none"}
    return "|".join("|".join(get_args(part)) if get_origin(part) is Literal else names[part] for part in _parts(hint))


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
