"""Where the compiled kernels are found. Each has a numpy twin beside its caller which writes the same bytes."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType


def compiled() -> ModuleType | None:
    """The numba kernels, loaded on first use (numba takes half a second to import); None where numba is missing."""
    return _loaded("compiled")


def in_use() -> ModuleType | None:
    """The numba kernels where something has loaded them: what is as fast without is not worth numba's 100 MB."""
    return _ready.get("compiled")


def compiled_select() -> ModuleType | None:
    """The same for the selection kernels."""
    return _loaded("compiled_select")


def compiled_codes() -> ModuleType | None:
    """The same for the loops over kept numbers; None where `compiled` is."""
    return None if compiled() is None else _loaded("compiled_codes")


_ready: dict[str, ModuleType] = {}


@cache
def _loaded(name: str) -> ModuleType | None:
    if importlib.util.find_spec("numba"):
        _ready[name] = importlib.import_module(f"{__package__}.{name}")
    return _ready.get(name)
