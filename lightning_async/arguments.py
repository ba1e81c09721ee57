"""What factories ask of their arguments. Each check passes, or raises a ConfigError with what was got and expected."""

from __future__ import annotations

import math
from typing import Any

from lightning_async.errors import ConfigError


def is_whole(value: object, least: int) -> bool:
    """Whether `value` is an integer >= `least`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def whole(what: str, value: object, least: int) -> None:
    """Raises ConfigError unless `value` is an integer >= `least`."""
    if not is_whole(value, least):
        raise ConfigError(f"{what}: got {value!r}, expected an integer >= {least}")


def number(
    what: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raises ConfigError unless `value` is a finite number with least <= value <= most and above < value < below."""
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if numeric and least <= value <= most and above < value < below:
        return
    bounds = ((">=", least), (">", above), ("<=", most), ("<", below))
    words = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
    raise ConfigError(f"{what}: got {value!r}, expected a finite number {words}".rstrip())
