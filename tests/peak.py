"""The highest use of memory while something runs, as Python's allocator and NumPy see it: no noise of the machine."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """`with peak_memory() as peak_bytes: ...; assert peak_bytes() < ...`. Tracing ends with it, whatever happens."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
