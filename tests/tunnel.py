"""A TCP tunnel in the test's own process that can be slow, stand still or break, and counts what passes."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Tunnel:
    """Forwards `url` to `target`. While it holds, connections stand but nothing passes. What passes is counted before
    it arrives.

    `up_rate` is how many bytes per second go up, None: as many as come. It may be changed at any time.
    """

    def __init__(self, target: str) -> None:
        place = urlsplit(target)
        self._target = (place.hostname, place.port)
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._door.getsockname()[1]}"
        self.up_bytes = self.down_bytes = self.connections = 0
        self.held_bytes = 0  # of those who dialled, that came while it held
        self.up_rate: float | None = None
        self._open = threading.Event()
        self._open.set()
        self._over = threading.Event()
        self._lines: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="tunnel", daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._threads[0].join()
        self.cut()
        self.release()
        for thread in self._threads[1:]:
            thread.join()
        for line in self._lines:
            line.close()

    def hold(self) -> None:
        """Let nothing pass from now on."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def cut(self) -> None:
        """Break every connection there is; what it holds is lost."""
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                near, _ = self._door.accept()
            except OSError:
                continue
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            self.connections += 1
            self._lines += [near, far]
            for source, sink, up in ((near, far, True), (far, near, False)):
                pump = threading.Thread(target=self._pump, args=(source, sink, up), name="tunnel", daemon=True)
                self._threads.append(pump)
                pump.start()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if up and not self._open.is_set():
                    self.held_bytes += len(data)
                self._open.wait()
                rate = self.up_rate
                if up and rate is not None:
                    self._over.wait(len(data) / rate)
                if up:
                    self.up_bytes += len(data)
                else:
                    self.down_bytes += len(data)
                sink.sendall(data)
        for line in (source, sink):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
