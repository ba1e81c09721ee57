"""A worker's line to its server: the real one, or one that is made worse on purpose by a proxy in this process."""

from __future__ import annotations

import threading
from typing import Any

from lightning_async.links import Link
from lightning_async.transport import connect
from lightning_async.transport.base import Connection
from lightning_async.transport.shaping import Proxy
from lightning_async.worker.world import World


class Line:
    """Everything that one worker dials goes over one line, `link`; None is the real one, to which nothing is added.

    `connect` may be called from any thread. After `close` the proxy is gone, and so are connections over it.
    """

    def __init__(self, link: Link | None = None, seed: int = 0) -> None:
        self._link, self._seed = link, seed
        self._proxies: dict[str, Proxy] = {}
        self._lock = threading.Lock()

    @property
    def world(self) -> World:
        """The real world behind this line."""
        return World(connect=self.connect)

    def connect(self, address: str, **options: Any) -> Connection:
        """As `transport.connect`."""
        return connect(address if self._link is None else self._shaped(address, self._link), **options)

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
