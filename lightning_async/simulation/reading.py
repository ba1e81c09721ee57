"""YAML -> Scenario: every key known, every value of its type, errors that name the place. Also `key=value` changes."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from lightning_async.config import RunConfig, read_config
from lightning_async.errors import ConfigError
from lightning_async.links import Link, link
from lightning_async.simulation.scenario import Scenario

SHIPPED = Path(__file__).parent / "scenarios"


def shipped() -> list[str]:
    """The names of the scenarios that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_scenario(choice: str | Path, changes: Sequence[str] = ()) -> Scenario:
    """The scenario in the file `choice`, or the shipped one of that name, with `changes` such as `run.local_steps=8`.

    Raises ConfigError for a file that is not there, an unknown key, a value of another type, or one out of range.
    """
    path = SHIPPED / f"{choice}.yaml" if str(choice) in shipped() else Path(choice)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(shipped())
        raise ConfigError(f"got {str(choice)!r}, expected a YAML file or one of: {known} ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign:
            raise ConfigError(f"got {change!r}, expected key=value, such as run.local_steps=8 or workers.0.speed=2.0")
        values = changed(values, key.split("."), _value(text), key)
    return scenario_of(values, {"name": path.stem})


def scenario_of(values: Any, defaults: Mapping[str, Any] | None = None) -> Scenario:
    """The scenario that plain `values` describe. Raises ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"got {str(values)[:80]!r}, expected a mapping such as `task: digits()`")
    scenario = _object(Scenario, {**(defaults or {}), **values}, "")
    assert isinstance(scenario, Scenario)
    return scenario


def changed(values: Any, path: Sequence[str], value: Any, whole: str) -> Any:
    """A copy of `values` with the entry at `path` set: keys of mappings, numbers of list entries, `*` for all."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(values, list):
        if first == "*":
            return [changed(item, rest, value, whole) for item in values]
        if not first.isdigit() or int(first) >= len(values):
            raise ConfigError(f"{whole}: got {first!r}, expected a number below {len(values)}, or *")
        return [changed(item, rest, value, whole) if i == int(first) else item for i, item in enumerate(values)]
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{whole}: got a key below {values!r}, which has none")
    return {**(values or {}), first: changed((values or {}).get(first), rest, value, whole)}


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _object(kind: type, values: Any, place: str) -> Any:
    """A `kind` from a mapping. `place` is where it stands, for errors."""
    if not isinstance(values, dict):
        raise ConfigError(f"{place or 'scenario'}: got {values!r}, expected a mapping")
    if kind is RunConfig:
        return _located(place, lambda: read_config(values))
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    unknown = sorted(str(key) for key in set(values) - known)
    if unknown:
        at = f"{place}: " if place else ""
        raise ConfigError(f"{at}got the key {', '.join(unknown)}, expected some of: {', '.join(sorted(known))}")
    given = {key: _typed(hints[key], value, f"{place}.{key}".lstrip(".")) for key, value in values.items()}
    return _located(place, lambda: kind(**given))


def _located(place: str, make: Any) -> Any:
    try:
        return make()
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{place}: {error}" if place else str(error)) from error


def _typed(hint: Any, value: Any, place: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        return None if value is None else _typed(options[0], value, place)
    if hint is Link and isinstance(value, str):
        return _located(place, lambda: link(value))
    if is_dataclass(hint):
        return _object(hint if isinstance(hint, type) else type(hint), value, place)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{place}: got {value!r}, expected a list")
        return tuple(_typed(get_args(hint)[0], item, f"{place}.{i}") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{place}: got {value!r}, expected {hint.__name__}")
    return value
