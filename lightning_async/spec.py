"""The text form of a family's member: `topk(density=0.01, values='int8')`, `pipeline(nnm(f=2), trimmed_mean(f=2))`.

A spec is what travels in the handshake, stands in YAML and on the command line, and is compared by both sides.
Rule of this file: text becomes an object only through the family's own table; a name outside the table, and any
syntax beyond nested calls with literal arguments, is a ConfigError. Nothing is ever evaluated.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lightning_async.errors import ConfigError

T = TypeVar("T")
LONGEST_SPEC = 1000


def call(name: str, /, *args: object, **kwargs: object) -> str:
    """The canonical spec of a member: positional arguments that have a `.spec` nest, keywords are written in order."""
    parts = [getattr(arg, "spec", None) or repr(arg) for arg in args]
    parts += [f"{key}={value!r}" for key, value in kwargs.items()]
    return f"{name}({', '.join(parts)})"


def parse(text: str, table: Mapping[str, Callable[..., T]], family: str) -> T:
    """The member that `text` names in `table`; `family` is the noun used in errors ("codec", "aggregator", ...).

    Raises ConfigError for an unknown name, a bad argument, or anything that is not a nested call of literals.
    """
    if len(text) > LONGEST_SPEC:
        raise ConfigError(f"{family} spec of {len(text)} characters; at most {LONGEST_SPEC} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{family} {text!r} is not a spec; write a name or name(key=value, ...)") from error
    member: T = _build(tree, table, family, text)
    return member


def _build(node: ast.expr, table: Mapping[str, Callable[..., Any]], family: str, text: str) -> Any:
    if isinstance(node, ast.Name):
        return _make(node.id, (), {}, table, family)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        args = tuple(_argument(arg, table, family, text) for arg in node.args)
        kwargs = {str(k.arg): _argument(k.value, table, family, text) for k in node.keywords if k.arg}
        if len(kwargs) == len(node.keywords):
            return _make(node.func.id, args, kwargs, table, family)
    raise ConfigError(f"{family} {text!r} is not a spec; write a name or name(key=value, ...)")


def _argument(node: ast.expr, table: Mapping[str, Callable[..., Any]], family: str, text: str) -> Any:
    if isinstance(node, (ast.Call, ast.Name)):
        return _build(node, table, family, text)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ConfigError(f"{family} {text!r}: arguments must be literals such as 0.01 or 'int8'") from error


def _make(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], table: Mapping[str, Callable[..., Any]], family: str
) -> Any:
    factory = table.get(name)
    if factory is None:
        raise ConfigError(f"unknown {family} {name!r}; known: {', '.join(sorted(table))}")
    try:
        return factory(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{family} {name}: {error}") from error
