"""A TCP proxy between a connection and its listener: counts bytes, slows them down, cuts the line."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Proxy:
    """Forwards `url` to `target`; `rate` bounds each direction in bytes per second."""

    def __init__(self, target: str, rate: float | None = None) -> None:
        place = urlsplit(target)
        self._target = (place.hostname, place.port)
        self._rate = rate
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._door.getsockname()[1]}"
        self.up_bytes = self.down_bytes = self.connections = 0
        self._stopped = threading.Event()
        self._lines: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads[1:]:
            thread.join()
        for line in self._lines:
            line.close()

    def cut(self) -> None:
        """End every connection there is."""
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                near, _ = self._door.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            self.connections += 1
            self._lines += [near, far]
            for source, sink, up in ((near, far, True), (far, near, False)):
                self._threads.append(threading.Thread(target=self._pump, args=(source, sink, up), daemon=True))
                self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if up:
                    self.up_bytes += len(data)
                else:
                    self.down_bytes += len(data)
                if self._rate:
                    self._stopped.wait(len(data) / self._rate)
                sink.sendall(data)
        for line in (source, sink):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
