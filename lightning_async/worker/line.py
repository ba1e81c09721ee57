"""A worker's line to its server: the real one, or one that is made worse on purpose by a proxy in this process; and
the way round it for a network that lets only HTTP pass."""

from __future__ import annotations

import threading
from typing import Any

from lightning_async.errors import ConfigError
from lightning_async.links import Link
from lightning_async.transport import connect
from lightning_async.transport.base import Connection
from lightning_async.transport.fallback import Fallback
from lightning_async.transport.shaping import Proxy
from lightning_async.worker.world import World


class Line:
    """Everything that one worker dials goes over one line, `link`; None is the real one, to which nothing is added.

    `fallback` is dialled instead of the server's address as long as nobody answers there.
    `connect` may be called from any thread. After `close` the proxy is gone, and so are connections over it.
    """

    def __init__(self, link: Link | None = None, seed: int = 0, fallback: str | None = None) -> None:
        self._link, self._seed, self._fallback = link, seed, fallback
        self._proxies: dict[str, Proxy] = {}
        self._lock = threading.Lock()

    @property
    def real(self) -> bool:
        """Whether nothing is added to it."""
        return self._link is None

    @property
    def world(self) -> World:
        """The real world behind this line."""
        return World(connect=self.connect)

    def connect(self, address: str, **options: Any) -> Connection:
        """As `transport.connect`; the options are those for `address`."""
        other = self._fallback
        if other is None:
            return connect(self._way(address), **options)
        return Fallback(
            lambda: connect(self._way(address), **options), lambda: connect(self._way(other)), (address, other)
        )

    def forbid_fallback(self) -> None:
        """Raises ConfigError where there is one: HTTP has no keys, and nobody is to be driven out of encryption."""
        if self._fallback is not None:
            raise ConfigError(f"fallback={self._fallback!r}: a worker with a key speaks only encrypted; leave one out")

    def _way(self, address: str) -> str:
        """Where to dial so that `address` is reached over the line."""
        return address if self._link is None else self._shaped(address, self._link)

    def _shaped(self, address: str, link: Link) -> str:
        with self._lock:
            if address not in self._proxies:
                self._proxies[address] = Proxy(address, link, seed=self._seed)
            return self._proxies[address].address

    def close(self) -> None:
        """End the proxy, where there is one. Idempotent."""
        with self._lock:
            while self._proxies:
                self._proxies.popitem()[1].close()
