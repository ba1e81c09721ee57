"""What is on its way to each peer: a slow reader may have so many bytes waiting here, and no more."""

from __future__ import annotations

from collections import deque

import zmq

SWEEP = 256  # sends between two looks at peers to which nothing was sent for long


class Outgoing:
    """Large frames that the socket has not let go of."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, deque[tuple[int, zmq.MessageTracker]]] = {}
        self._sends = 0

    def bytes_to(self, peer: bytes) -> int:
        """Bytes that `peer` has not been sent yet."""
        waiting = self._waiting.get(peer)
        if waiting is None:
            return 0
        while waiting and waiting[0][1].done:
            waiting.popleft()
        if not waiting:
            del self._waiting[peer]
        return sum(size for size, _ in waiting)

    def note(self, peer: bytes, size: int, tracker: zmq.MessageTracker) -> None:
        """`size` bytes go to `peer`; `tracker` says when they have."""
        self._waiting.setdefault(peer, deque()).append((size, tracker))
        self._sends += 1
        if self._sends % SWEEP == 0:
            for other in list(self._waiting):
                self.bytes_to(other)
