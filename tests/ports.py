"""Loopback addresses for tests: one that a server may take, one where nobody answers, and who listens where."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

OWN = range(20_000, 30_000)  # below the ports that systems give out by themselves, so that none of those takes one


def free(address: str) -> bool:
    """Whether nobody listens at `tcp://host:port`."""
    place = urlsplit(address)
    with socket.socket() as probe:
        return probe.connect_ex((place.hostname, place.port)) != 0


def free_address() -> str:
    """An address where nobody listens now, for a server that is started later."""
    for port in random.SystemRandom().sample(OWN, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return f"tcp://127.0.0.1:{port}"
    raise AssertionError("no free port among a hundred")


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """An address that refuses every connection and that no other program can take meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{held.getsockname()[1]}"
