"""The fields of a message as they come out of msgpack, checked against the annotations of its dataclass.

The check of a class is built once, from its type hints: int, float, str, bool, Any, list[...], dict[str, ...] and
unions of these with None. Rule of this file: a value is passed or refused; nothing is converted, but int to float and
tuple to list. Bounds are those of docs/protocol.md, section 6.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from math import isfinite
from typing import Any, Union, get_args, get_origin, get_type_hints

MAX_STRING = 65_536  # characters
MAX_ITEMS = 65_536  # of one list or map
MAX_DEPTH = 8  # lists and maps inside each other
INT_RANGE = range(-(2**63), 2**63)

Check = Callable[[Any, int], Any]  # (value, depth left) -> value to keep; raises ValueError


def read(kind: type, values: Mapping[str, Any]) -> Any:
    """The message of class `kind` with these fields. Unknown ones are ignored; ValueError says which one is wrong."""
    kept = {}
    for name, check, required in _plan(kind):
        if name in values:
            kept[name] = _checked(kind, name, check, values[name])
        elif required:
            raise ValueError(f"{kind.__name__} without its field {name!r}")
    return kind(**kept)


def write(message: Any) -> dict[str, Any]:
    """The fields of `message`, held against the same check that its reader will apply."""
    kind: type = type(message)
    return {name: _checked(kind, name, check, getattr(message, name)) for name, check, _ in _plan(kind)}


@cache
def _plan(kind: type) -> tuple[tuple[str, Check, bool], ...]:
    hints = get_type_hints(kind)
    return tuple(
        (item.name, _check_of(hints[item.name]), item.default is MISSING and item.default_factory is MISSING)
        for item in fields(kind)
    )


def _checked(kind: type, name: str, check: Check, value: Any) -> Any:
    try:
        return check(value, MAX_DEPTH)
    except ValueError as error:
        raise ValueError(f"{kind.__name__}.{name}: {error}") from None


def _check_of(hint: Any) -> Check:
    origin, args = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin is list:
        return _list_of(_check_of(args[0]))
    if origin is dict and args[0] is str:
        return _dict_of(_check_of(args[1]))
    if origin in (Union, types.UnionType) and len(args) == 2 and args[1] is type(None):
        return _optional(_check_of(args[0]))
    raise TypeError(f"no check for fields of type {hint!r}; add one to wire/fields.py")


def _bool(value: Any, depth: int) -> bool:
    if value is True or value is False:
        return bool(value)
    raise ValueError(f"got {_show(value)}, expected true or false")


def _int(value: Any, depth: int) -> int:
    if type(value) is int and value in INT_RANGE:
        return value
    raise ValueError(f"got {_show(value)}, expected a signed 64-bit integer")


def _float(value: Any, depth: int) -> float:
    if type(value) is float and isfinite(value):
        return value
    if type(value) is int and value in INT_RANGE:
        return float(value)
    raise ValueError(f"got {_show(value)}, expected a finite number")


def _str(value: Any, depth: int) -> str:
    if isinstance(value, str) and len(value) <= MAX_STRING:
        return str.__str__(value)  # plain text also of an enum's member
    raise ValueError(f"got {_show(value)}, expected text of at most {MAX_STRING} characters")


def _any(value: Any, depth: int) -> Any:
    if value is None:
        return None
    check = _INSIDE.get(type(value))
    if check is None:
        raise ValueError(f"got {_show(value)}, expected null, number, text, list or map")
    return check(value, depth)


def _list_of(check: Check) -> Check:
    def checked(value: Any, depth: int) -> list[Any]:
        if type(value) not in (list, tuple) or len(value) > MAX_ITEMS:
            raise ValueError(f"got {_show(value)}, expected a list of at most {MAX_ITEMS} items")
        return [check(item, _deeper(depth)) for item in value]

    return checked


def _dict_of(check: Check) -> Check:
    def checked(value: Any, depth: int) -> dict[str, Any]:
        if type(value) is not dict or len(value) > MAX_ITEMS:
            raise ValueError(f"got {_show(value)}, expected a map of at most {MAX_ITEMS} items")
        left = _deeper(depth)
        return {_str(key, left): check(item, left) for key, item in value.items()}

    return checked


def _optional(check: Check) -> Check:
    return lambda value, depth: None if value is None else check(value, depth)


def _deeper(depth: int) -> int:
    if depth == 0:
        raise ValueError(f"lists and maps deeper than {MAX_DEPTH}")
    return depth - 1


def _show(value: Any) -> str:
    """A short repr; what is long or odd is named by its type, so that an error text stays small."""
    if isinstance(value, (bool, int, float)) or value is None:
        return repr(value)[:80]
    if isinstance(value, str) and len(value) <= 40:
        return repr(value)
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


_PLAIN: dict[Any, Check] = {bool: _bool, int: _int, float: _float, str: _str, Any: _any}
_INSIDE: dict[type, Check] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    list: _list_of(_any),
    tuple: _list_of(_any),
    dict: _dict_of(_any),
}
