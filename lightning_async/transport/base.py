"""What a transport is: a listener for the server, a connection for a worker. Both move lists of byte frames.

Rules: the calls of one object come from one thread (`wake` excepted); a frame handed to `send` belongs to the
transport until it is gone, so its sender must not write into it; foreign errors are translated here (NetworkError).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_async.transport.door import Door

Frame = bytes | bytearray | memoryview
CHECK = (
    "Check that the server runs there, that host and port are those it printed, and that firewalls and tunnels let TCP "
    "through"
)


@dataclass(frozen=True)
class Traffic:
    """Bytes on the socket so far, the transport's own framing included."""

    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass
class Count:
    """The running numbers behind a Traffic."""

    sent: int = 0
    received: int = 0

    def traffic(self) -> Traffic:
        return Traffic(self.sent, self.received)


class Connection(ABC):
    """A worker's end: dials out, reconnects by itself, never blocks for longer than it is told."""

    cuts: bool = True  # whether large messages are to travel in chunks
    trouble: str = ""  # what this transport knows of why nobody answers, for people

    @abstractmethod
    def send(self, frames: Sequence[Frame]) -> None:
        """Queue one message. Never blocks. Raises NetworkError when the queue is full: the peer does not read."""

    @abstractmethod
    def receive(self, timeout_s: float) -> list[memoryview] | None:
        """The next message, or None after `timeout_s` or a `wake`. Raises RefusedError when the server takes no key of
        ours, or speaks only with keys."""

    @abstractmethod
    def wake(self) -> None:
        """Make a `receive` that waits in the owner's thread return None now. The one call allowed from any thread."""

    @abstractmethod
    def traffic(self) -> Traffic:
        """Bytes of this connection so far."""

    @abstractmethod
    def close(self) -> None:
        """Drop what is queued and free the socket. Idempotent."""


def hint(connection: Connection) -> str:
    """For people, to whom nobody answers: what the transport knows of why, else what to check."""
    return connection.trouble or CHECK


class Listener(ABC):
    """The server's end. A peer is an opaque key that stays the same while its connection lives."""

    address: str  # where workers dial, with the real port
    door: Door | None = None  # where peers prove who they are; None: nobody is asked

    @abstractmethod
    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        """The next (peer, message), or None after `timeout_s` or a `wake`."""

    @abstractmethod
    def send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        """Queue one message to `peer`; False, and nothing is sent, when it is gone or does not read. Never blocks."""

    @abstractmethod
    def wake(self) -> None:
        """Make a `receive` that waits return None now. The one call allowed from any thread."""

    @abstractmethod
    def limit(self, largest_message_bytes: int) -> None:
        """From now on refuse frames larger than this before they are stored."""

    @abstractmethod
    def close(self) -> None:
        """Stop listening and free the port. Idempotent."""
