"""A bounded queue between threads, for transports that have no socket to wait on."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A bounded queue that one thread waits on."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._woken = False

    def put(self, item: T) -> bool:
        """False when it is full."""
        with self._changed:
            if len(self._items) >= self.room:
                return False
            self._items.append(item)
            self._changed.notify()
            return True

    def take(self, timeout_s: float) -> T | None:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._woken, max(timeout_s, 0.0))
            if self._items:
                return self._items.popleft()
            self._woken = False
            return None

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify()

    def clear(self) -> None:
        with self._changed:
            self._items.clear()
