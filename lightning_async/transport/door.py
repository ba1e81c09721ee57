"""The door of a server with keys: whose key knocks, whose message this is, how a new key comes onto the list.

Used by two threads: the transport's (`knock`) and the server's (the rest). What they share is the list of keys, which
is replaced as a whole, and counters.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from lightning_async.errors import ConfigError
from lightning_async.transport import invitations
from lightning_async.transport.allowed import REVOKED, STRANGER, Allowed, Caller, allow
from lightning_async.transport.conduct import BAN_S, Conduct
from lightning_async.transport.keys import KEY_BYTES, read_server

log = logging.getLogger(__name__)
LOOK_S = 0.5  # how often a change of the list is looked for
PLACE_BYTES = 8
NETWORK_BITS = 64  # of IPv6: whoever has one address has a network of them


@lru_cache(maxsize=1024)
def place(host: str) -> bytes:
    """Where a peer comes from, in PLACE_BYTES: its IPv4 address, or its network of IPv6."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        address = ipaddress.ip_address(0)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or ipaddress.IPv6Address(int(address) >> NETWORK_BITS << NETWORK_BITS)
    return blake2b(address.packed, digest_size=PLACE_BYTES).digest()


class Door:
    """Raises ConfigError when `folder` holds no keys of a server.

    `counts`: what was turned away, by why. A peer of a transport with a door ends in `place` and the 32 bytes of its
    public key. Keys of the list are judged each by itself; of all others, who come while an invitation is open and can
    make up a key whenever they like, each address is.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.pair = folder, read_server(folder)
        self._allowed, self._clock = Allowed(folder, clock), clock
        self._lock = threading.Lock()
        self._next, self._edition = 0.0, self._allowed.edition
        self.counts: Counter[str] = Counter()
        self._listed, self._strangers = Conduct(), Conduct()
        self.cuts: list[Callable[[bytes], None]] = []  # of its listeners: ends the lines of a key

    def knock(self, key: bytes, host: str = "") -> bool:
        """Whether this key may come in: one of the list, or any while an invitation waits for somebody."""
        self._refresh()
        caller = self._allowed.callers.get(key, STRANGER)
        conduct, name = self._record(place(host) + key)
        if conduct.is_out(name, self._clock()):
            self.turn_away("put out")
            return False
        if caller.role == REVOKED or (caller is STRANGER and not invitations.expects(self.folder, key, time.time())):
            self.turn_away("revoked key" if caller.role == REVOKED else "unknown key")
            return False
        return True

    def hears(self, peer: bytes) -> bool:
        """Whether one more message of `peer` is listened to; of one that was put out none is."""
        (conduct, name), now = self._record(peer), self._clock()
        if conduct.is_out(name, now):
            return False
        if conduct.may_speak(name, now):
            return True
        self.blame(peer, "too fast")
        return False

    def blame(self, peer: bytes, why: str) -> None:
        """Count that `peer` has done what it should not; too often, and its key is put out for a while."""
        self.turn_away(why)
        conduct, name = self._record(peer)
        if conduct.blame(name, self._clock()):
            who = self.caller(peer).name or "an address of unknown keys"
            log.warning("%s was put out for %.0f s: %s", who, BAN_S, why)
            for cut in self.cuts:
                cut(peer[-KEY_BYTES:])

    def _record(self, peer: bytes) -> tuple[Conduct, bytes]:
        """Where it stands how `peer` behaves, and under what name."""
        key = peer[-KEY_BYTES:]
        if key in self._allowed.callers:
            return self._listed, key
        return self._strangers, peer[-KEY_BYTES - PLACE_BYTES : -KEY_BYTES]

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
        except (ConfigError, OSError):
            invitations.release(self.folder, token)
            raise
        self._refresh()
        try:
            invitations.finish(self.folder, token, key)
        except ConfigError as error:
            log.warning("the invitation of %s stays good for its key: %s", made.name, error)
        return made

    def _refresh(self) -> None:
        with self._lock:
            self._allowed.refresh()
