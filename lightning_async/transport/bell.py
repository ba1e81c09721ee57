"""Waking a thread that polls: a pair of sockets, one end in its poller, the other for everybody else."""

from __future__ import annotations

import contextlib
import socket
import threading


class Bell:
    """`ring` from any thread makes `fileno` readable until `silence`. Rings do not add up."""

    def __init__(self) -> None:
        self._inside, self._outside = socket.socketpair()
        self._inside.setblocking(False)
        self._outside.setblocking(False)
        self._lock = threading.Lock()  # nobody rings a descriptor that was closed and belongs to something else now

    def fileno(self) -> int:
        return self._inside.fileno()

    def ring(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._outside.fileno() >= 0:
                self._outside.send(b"\0")

    def silence(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._inside.recv(4096)

    def close(self) -> None:
        with self._lock:
            self._outside.close()
        self._inside.close()
