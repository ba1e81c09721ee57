"""Somebody on the line between a connection and its listener: hears everything, and may alter it."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from urllib.parse import urlsplit


class Line:
    """Forwards `url` to `target`. `said` went up, `heard` are both directions; `replace` is done to what passes."""

    def __init__(self, target: str, replace: tuple[bytes, bytes] = (b"", b"")) -> None:
        place = urlsplit(target)
        self._target, self._replace = (place.hostname, place.port), replace
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._door.getsockname()[1]}"
        self.said, self.heard = bytearray(), [bytearray(), bytearray()]
        self.connections = 0
        self._flip: int | None = None
        self._way = 0
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def flip_after(self, offset: int, at: int, down: bool = False) -> None:
        """Of the next large part that goes up, or `down`, turn a bit of byte `at`, from its first byte or its last."""
        self._flip, self._way = at if at < 0 else offset + 9 + at, int(down)

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._threads[0].join()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._door.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self.connections += 1
            self._ends += [near, far]
            for number, (source, sink) in enumerate(((near, far), (far, near))):
                self._threads.append(threading.Thread(target=self._pump, args=(source, sink, number), daemon=True))
                self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            while part := bytearray(source.recv(2**20)):
                if number == 0:
                    self.said += part
                self.heard[number] += part
                if self._replace[0]:
                    part = part.replace(*self._replace)
                if number == self._way and self._flip is not None and len(part) > 1000:
                    part[self._flip] ^= 1
                    self._flip = None
                sink.sendall(part)
        for line in (source, sink):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
