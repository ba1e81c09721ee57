"""One server at several addresses: a listener made of listeners, which may be of different transports.

A peer is its listener's number and its key there, so no peer of one is ever taken for a peer of another. Each listener
is looked at in turn. One thread waits, as for every listener; what makes the others known is a `wake` of those that can
say so themselves (HTTP), and a short look at those that cannot.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from lightning_async.errors import ConfigError
from lightning_async.transport.base import Frame, Listener
from lightning_async.transport.xmlrpc_server import XmlRpcListener

LOOK_S = 0.01  # between two looks at a listener that cannot say that something has come
MOST = 16


def several(listeners: Sequence[Listener]) -> Listener:
    """The listener itself where there is one."""
    return listeners[0] if len(listeners) == 1 else Several(listeners)


class Several(Listener):
    """`address` is the first one's; `addresses` are all. Closes them all."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        if not 1 <= len(listeners) <= MOST:
            raise ConfigError(f"got {len(listeners)} addresses to listen at, expected 1 to {MOST}")
        self._all = tuple(listeners)
        self.address, self.addresses = self._all[0].address, tuple(each.address for each in self._all)
        self.door = self._all[0].door
        if any(each.door is not self.door for each in self._all):
            raise ConfigError("one address asks for keys and another does not, or for others: give all the same door")
        self._turn, self._woken = 0, threading.Event()
        # One listener is waited on; the others wake it, or are looked at in between.
        self._first = next((each for each in self._all if not isinstance(each, XmlRpcListener)), self._all[0])
        others = [each for each in self._all if each is not self._first]
        self._looks = any(not isinstance(each, XmlRpcListener) for each in others)
        for each in others:
            if isinstance(each, XmlRpcListener):
                each.desk.arrived = self._first.wake

    def __repr__(self) -> str:
        return f"<Several {', '.join(self.addresses)}>"

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        deadline = time.monotonic() + max(0.0, timeout_s)
        while (found := self._look()) is None:
            left = deadline - time.monotonic()
            if self._woken.is_set() or left <= 0:
                self._woken.clear()
                return None
            found = self._first.receive(min(left, LOOK_S) if self._looks else left)
            if found is not None:
                return bytes([self._all.index(self._first)]) + found[0], found[1]
        return found

    def _look(self) -> tuple[bytes, list[memoryview]] | None:
        """What has come at any of them; another one is asked first each time."""
        for _ in self._all:
            self._turn = (self._turn + 1) % len(self._all)
            found = self._all[self._turn].receive(0.0)
            if found is not None:
                return bytes([self._turn]) + found[0], found[1]
        return None

    def send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        return bool(peer) and peer[0] < len(self._all) and self._all[peer[0]].send(peer[1:], frames)

    def wake(self) -> None:
        self._woken.set()
        self._first.wake()

    def limit(self, largest_message_bytes: int) -> None:
        for each in self._all:
            each.limit(largest_message_bytes)

    def close(self) -> None:
        for each in self._all:
            each.close()
