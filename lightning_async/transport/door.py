"""The door of a server with keys: whose key knocks, whose message this is, how a new key comes onto the list.

Used by two threads: the transport's (`knock`) and the server's (the rest). What they share is the list of keys, which
is replaced as a whole, and counters.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lightning_async.errors import ConfigError
from lightning_async.transport import invitations
from lightning_async.transport.allowed import REVOKED, STRANGER, Allowed, Caller, allow
from lightning_async.transport.conduct import BAN_S, Conduct
from lightning_async.transport.keys import KEY_BYTES, read_server

log = logging.getLogger(__name__)
LOOK_S = 0.5  # how often a change of the list is looked for


class Door:
    """Raises ConfigError when `folder` holds no keys of a server.

    `counts`: what was turned away, by why. A peer of a transport with a door ends in the 32 bytes of its public key.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.pair = folder, read_server(folder)
        self._allowed, self._clock = Allowed(folder), clock
        self._lock = threading.Lock()
        self._next, self._edition = 0.0, self._allowed.edition
        self.counts: Counter[str] = Counter()
        self._conduct = Conduct()
        self.cuts: list[Callable[[bytes], None]] = []  # of its listeners: ends the lines of a key

    def knock(self, key: bytes) -> bool:
        """Whether this key may come in: one of the list, or any while an invitation waits for somebody."""
        self._refresh()
        caller = self._allowed.callers.get(key, STRANGER)
        if self._conduct.is_out(self._record(key), self._clock()):
            self.turn_away("put out")
            return False
        if caller.role == REVOKED or (caller is STRANGER and not invitations.open_ones(self.folder, time.time())):
            self.turn_away("revoked key" if caller.role == REVOKED else "unknown key")
            return False
        return True

    def hears(self, peer: bytes) -> bool:
        """Whether one more message of `peer` is listened to; of one that was put out none is."""
        key, now = self._record(peer[-KEY_BYTES:]), self._clock()
        if self._conduct.is_out(key, now):
            return False
        if self._conduct.may_speak(key, now):
            return True
        self.blame(peer, "too fast")
        return False

    def blame(self, peer: bytes, why: str) -> None:
        """Count that `peer` has done what it should not; too often, and its key is put out for a while."""
        self.turn_away(why)
        key = peer[-KEY_BYTES:]
        if self._conduct.blame(self._record(key), self._clock()):
            log.warning("%s was put out for %.0f s: %s", self.caller(peer).name or "an unknown key", BAN_S, why)
            for cut in self.cuts:
                cut(key)

    def _record(self, key: bytes) -> bytes:
        return key if key in self._allowed.callers else b""

    def turn_away(self, why: str) -> int:
        """Count it; how often that was."""
        with self._lock:
            self.counts[why] += 1
            return self.counts[why]

    def caller(self, peer: bytes) -> Caller:
        """Who is at the other end of `peer` now."""
        return self._allowed.callers.get(peer[-KEY_BYTES:], STRANGER)

    def refresh(self) -> bool:
        """Whether the list has changed since the last call; looks at most every LOOK_S."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + LOOK_S
        self._refresh()
        before, self._edition = self._edition, self._allowed.edition
        return before != self._edition

    def enrol(self, peer: bytes, token: str, name: str) -> Caller:
        """Put the key of `peer` onto the list, as the invitation says. Raises ConfigError."""
        known = self.caller(peer)
        if known is not STRANGER:
            return known
        key = peer[-KEY_BYTES:]
        try:
            caller = invitations.redeem(self.folder, token, key, name, time.time())
        except ConfigError:
            self.turn_away("wrong invitation")
            raise
        try:
            made = allow(self.folder, key, caller)
        except ConfigError:
            invitations.release(self.folder, token)
            raise
        self._refresh()
        return made

    def _refresh(self) -> None:
        with self._lock:
            self._allowed.refresh()
