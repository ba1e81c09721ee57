"""Where the compiled kernels are found. Each has a numpy twin beside its caller which writes the same bytes."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType


@cache
def compiled() -> ModuleType | None:
    """The numba kernels, loaded on first use (numba takes half a second to import); None where numba is missing."""
    return _loaded("compiled")


@cache
def compiled_select() -> ModuleType | None:
    """The same for the selection kernels."""
    return _loaded("compiled_select")


def _loaded(name: str) -> ModuleType | None:
    return importlib.import_module(f"{__package__}.{name}") if importlib.util.find_spec("numba") else None
