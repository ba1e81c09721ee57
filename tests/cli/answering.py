"""Programs at a loopback port that are no healthy server of ours, for tests of what people are told about them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

from eventually import ENOUGH_S

from lightning_async.transport import listen
from lightning_async.wire.frames import Frame


@contextlib.contextmanager
def answering(answer: Callable[[Sequence[memoryview]], Sequence[Frame] | None]) -> Iterator[str]:
    """The address of a ZeroMQ listener that says what `answer` makes of each message; None says nothing."""
    listener, over = listen("tcp://127.0.0.1:0"), threading.Event()

    def serve() -> None:
        while not over.is_set():
            got = listener.receive(0.05)
            said = None if got is None else answer(got[1])
            if got is not None and said is not None:
                listener.send(got[0], said)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.address
    finally:
        over.set()
        thread.join(ENOUGH_S)
        listener.close()


@contextlib.contextmanager
def talking(banner: bytes = b"", answer: bytes = b"") -> Iterator[str]:
    """The tcp address of a socket that says `banner` to everybody, and `answer` to whoever ends a line."""
    with socket.create_server(("127.0.0.1", 0)) as door, contextlib.ExitStack() as lines:
        threads: list[threading.Thread] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    line, _ = door.accept()
                    lines.callback(line.close)
                    threads.append(threading.Thread(target=talk, args=(line,), daemon=True))
                    threads[-1].start()

        def talk(line: socket.socket) -> None:
            with contextlib.suppress(OSError):
                line.sendall(banner)
                while part := line.recv(4096):
                    if b"\n" in part and answer:
                        line.sendall(answer)
                        line.shutdown(socket.SHUT_WR)

        acceptor = threading.Thread(target=serve, daemon=True)
        acceptor.start()
        try:
            yield f"tcp://127.0.0.1:{door.getsockname()[1]}"
        finally:
            door.shutdown(socket.SHUT_RDWR)
            acceptor.join(ENOUGH_S)
            lines.close()
            for thread in threads:
                thread.join(ENOUGH_S)


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """The tcp address of a host that drops who knocks: its queue of connections is full."""
    with socket.socket() as door, contextlib.ExitStack() as lines:
        door.bind(("127.0.0.1", 0))
        door.listen(0)
        for _ in range(4):
            line = lines.enter_context(socket.socket())
            line.setblocking(False)
            line.connect_ex(door.getsockname())
        yield f"tcp://127.0.0.1:{door.getsockname()[1]}"
