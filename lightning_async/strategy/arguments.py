"""The strategy's arguments: what a user may write, and what becomes of it.

A member of a family may be a spec string ("topk(density=0.01)"), the object itself, or, from YAML, a mapping with
`class_path` and `init_args`; all become the same canonical spec. An argument that was not given is None: an embedded
server then uses its default, a remote one decides, and only given ones are claims that the run's must agree with.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from lightning_async.aggregation import AGGREGATORS, FILTERS, PREPROCESSING, rule
from lightning_async.codecs import CODECS, codec, upload_codec
from lightning_async.config import RunConfig, expanded
from lightning_async.errors import ConfigError
from lightning_async.outer import OUTERS, outer
from lightning_async.scheduling import PREDICTORS, SCHEDULERS, SIZINGS, predictor, scheduler, sizing
from lightning_async.staleness import POLICIES, WEIGHTS, policy, weight

Member: TypeAlias = Any

FAMILIES: dict[str, tuple[Mapping[str, Callable[..., Any]], Callable[[Any], Any]]] = {
    "compression": (CODECS, upload_codec),
    "download_compression": (CODECS, codec),
    "aggregation": ({**AGGREGATORS, **FILTERS, **PREPROCESSING}, rule),
    "outer": (OUTERS, outer),
    "staleness": (POLICIES, policy),
    "weight": (WEIGHTS, weight),
    "local_steps": (SIZINGS, sizing),
    "scheduler": (SCHEDULERS, scheduler),
    "predictor": (PREDICTORS, predictor),
}


@dataclass(frozen=True)
class Given:
    """What the user gave: run configuration by name, canonical, without what was left out; and what stays private."""

    values: dict[str, Any]
    validation: str | None = None

    def config(self, workers: int) -> RunConfig:
        """The configuration of an embedded server for `workers` local workers."""
        values = dict(self.values)
        if values.get("submit") == "gradient":
            values.setdefault("local_steps", 1)
        values.setdefault("seed", int(os.environ.get("PL_GLOBAL_SEED", "0") or 0))
        return replace(RunConfig(workers=workers), **values)

    def claims(self) -> dict[str, str]:
        """What a remote run must agree with, name -> repr."""
        return {name: repr(value) for name, value in self.values.items()}


def given(validation: str | Callable[..., Any] | None = None, **values: Any) -> Given:
    """Read the strategy's arguments; None is "not given". Raises ConfigError."""
    known = {field.name for field in fields(RunConfig)} | {"mode"}
    kept = {name: canonical(name, value) for name, value in values.items() if value is not None}
    chosen = expanded({name: value for name, value in kept.items() if name in known})
    result = Given(chosen, import_path(validation))
    result.config(workers=1)  # says at once what cannot be
    return result


def import_path(function: str | Callable[..., Any] | None) -> str | None:
    """ "module:function" of a function that a process of its own, the embedded server, can import."""
    if function is None or isinstance(function, str):
        return function
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if module in ("", "__main__") or not name.replace(".", "_").isidentifier():
        raise ConfigError(
            f"validation: got {function!r}, which the server's own process cannot import; define it at the top of a "
            'module, and give it or "module:function"'
        )
    return f"{module}:{name}"


def canonical(name: str, value: Member) -> Any:
    """The canonical spec of a family's member; other arguments as they are."""
    if name not in FAMILIES:
        return value
    table, make = FAMILIES[name]
    if isinstance(value, Mapping):
        value = _from_mapping(name, value, table)
    return make(value).spec


def _from_mapping(name: str, value: Mapping[str, Any], table: Mapping[str, Callable[..., Any]]) -> Any:
    """`{class_path: lightning_async.outer.nesterov, init_args: {lr: 0.7}}`; arguments may be such mappings in turn."""
    path, arguments = value.get("class_path"), value.get("init_args") or {}
    if not isinstance(path, str) or not isinstance(arguments, Mapping) or set(value) - {"class_path", "init_args"}:
        raise ConfigError(f"{name}: got {dict(value)!r}; expected a spec string, or class_path and init_args")
    factory = table.get(path.rpartition(".")[2])
    if factory is None:
        raise ConfigError(f"{name}: unknown class_path {path!r}; known: {', '.join(sorted(table))}")
    given = {key: _nested(name, argument, table) for key, argument in arguments.items()}
    many = next((p.name for p in inspect.signature(factory).parameters.values() if p.kind is p.VAR_POSITIONAL), "")
    try:
        return factory(*given.pop(many, ()), **given)
    except TypeError as error:
        raise ConfigError(f"{name}: {path}: {error}") from error


def _nested(name: str, value: Any, table: Mapping[str, Callable[..., Any]]) -> Any:
    if isinstance(value, Mapping):
        return _from_mapping(name, value, table)
    return [_nested(name, item, table) for item in value] if isinstance(value, list) else value
