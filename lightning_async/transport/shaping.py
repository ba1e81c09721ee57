"""A bad line where there is a good one: a TCP proxy that gives what passes through it the rate, the latency, the losses
and the disconnects of a `Link`. In user space, without root; `tc netem` does it for real interfaces (links/tc.py).

    with Proxy("tcp://10.0.0.5:5555", link("cellular(loss=0.02)"), seed=7) as line:
        connection = transport.connect(line.address)

Up is what its clients send. All connections share one line, with one queue in each direction. What a segment's loss
does to a connection is computed (links/flow.py), so the same seed and the same traffic meet the same line; when the
bytes come is up to the programs, so no two runs are equal to the millisecond. The kernel's own buffers on both sides
are kept small, for what waits in them has left its sender and has met no line yet.

One thread owns sockets and model. `cut`, `carried_bytes` and `close` may be called from any.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

from lightning_async.errors import ConfigError, NetworkError
from lightning_async.links import Link
from lightning_async.links.flow import Lane
from lightning_async.transport.addresses import EVERYWHERE, Address, is_loopback, listening, parse
from lightning_async.transport.bell import Bell
from lightning_async.transport.passage import End, Passage, Room

SLICE_S = 0.5  # the longest wait without a look at what was asked
MILLISECOND = 0.001  # what the kernel rounds a wait up to
LEAST_BUFFER_BYTES, LARGEST_BUFFER_BYTES = 64 * 1024, 4 * 2**20


class Proxy:
    """Listens at `listen`, dials `target` for everyone who comes, and passes bytes on as `link` would.

    Raises ConfigError for an address that cannot be used, and for one beyond loopback unless `public`. `address` is
    where to dial instead of `target`: the same scheme, with the real port.
    """

    def __init__(
        self, target: str, link: Link, *, listen: str = "tcp://127.0.0.1:0", public: bool = False, seed: int = 0
    ) -> None:
        (scheme, self._target), at = _place(target), parse(listen)
        if not public and not is_loopback(at.host):
            raise ConfigError(
                f"{listen} can be reached from other machines, and so could {target}; allow it with public"
            )
        self.link, self.cuts = link, 0
        self._began = self.now()
        self._lanes = {up: Lane(link, "up" if up else "down", seed, self._began) for up in (True, False)}
        self._buffer = int(min(max(Room(lane).held for lane in self._lanes.values()), LARGEST_BUFFER_BYTES))
        self._door = listening(at)
        self._door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
        host = socket.gethostname() if at.host == EVERYWHERE else at.host
        self.address = Address(host, self._door.getsockname()[1]).url.replace("tcp", scheme, 1)
        self._bell, self._selector = Bell(), selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._selector.register(self._door, selectors.EVENT_READ)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._connections: set[_Connection] = set()
        self._carried = {True: 0, False: 0}
        self._next_family = 0
        self._schedule = random.Random(f"{seed}/cuts")
        self._away_until = -math.inf
        self._plan_cuts()
        self._asked: list[Callable[[], None]] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="lightning-async-shaping", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Proxy {self.address} to {self._target.url} | {len(self._connections)} connections | {self.cuts} cuts>"

    # For everybody.

    def carried_bytes(self, up: bool) -> int:
        """Bytes that have arrived in one direction so far, over all connections."""
        return self._carried[up]

    @property
    def lost(self) -> int:
        """Segments that TCP had to send again so far."""
        return sum(lane.lost for lane in self._lanes.values())

    def cut(self, away_s: float = 0.0) -> None:
        """Break every connection, soon; for `away_s` seconds from then on nobody gets through."""
        self._asked.append(lambda: self._cut(away_s))
        self._bell.ring()

    def close(self) -> None:
        """Hang up everywhere; thread and port are gone afterwards. Raises NetworkError when not. Idempotent."""
        self._stopped = True
        if self._thread.is_alive():
            self._bell.ring()
        self._thread.join(timeout=15.0)
        if self._thread.is_alive():
            raise NetworkError("the thread of the shaping proxy did not end within 15 s")

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What a Passage asks of its loop.

    def now(self) -> float:
        return time.monotonic()

    def at(self, due: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (due, next(self._numbers), call))

    # The thread.

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._turn()
        finally:
            for each in tuple(self._connections):
                self.hang_up(each, reset=True)
            self._selector.close()
            self._door.close()
            self._bell.close()

    def _turn(self) -> None:
        for key, event in self._ready():
            if key.fileobj is self._bell:
                self._bell.silence()
            elif key.fileobj is self._door:
                self._accept()
            else:
                _tell(key.data, event)
        while self._asked:
            self._asked.pop(0)()
        while self._due and self._due[0][0] <= self.now():
            heapq.heappop(self._due)[2]()

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        """What has come at the sockets until the next thing is due. The kernel rounds a wait up to whole milliseconds,
        so the last part of one is slept, unless something is there to be read meanwhile."""
        left = max(0.0, min(SLICE_S, self._due[0][0] - self.now()) if self._due else SLICE_S)
        found = self._selector.select(math.floor(left / MILLISECOND) * MILLISECOND)
        if not found and left < MILLISECOND:
            time.sleep(left)
        return found

    def _accept(self) -> None:
        try:
            client, _ = self._door.accept()
        except OSError:  # it has gone again
            return
        near = End(client, self._selector)
        far = None if self.now() < self._away_until else self._dial()
        if far is None:
            near.close(reset=True)
            return
        self._connections.add(_Connection(near, End(far, self._selector), self._lanes, self))

    def _dial(self) -> socket.socket | None:
        """A socket that is connecting to the target; None when that cannot be. A name's addresses take turns."""
        far: socket.socket | None = None
        try:
            found = socket.getaddrinfo(self._target.host, self._target.port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, where = found[self._next_family % len(found)]
            far = socket.socket(family, kind, protocol)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
            far.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                far.connect(where)
        except OSError:
            self._next_family += 1
            if far is not None:
                far.close()
            return None
        return far

    def hang_up(self, connection: _Connection, reset: bool) -> None:
        """End one connection, both of its sockets."""
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        for way in connection.ways:
            way.stop()
        if not connection.used:
            self._next_family += 1  # perhaps nobody is at that address
        connection.close(reset)

    # Disconnects.

    def _plan_cuts(self) -> None:
        cuts = self.link.cuts
        self._amounts = list(cuts.at_mb) if cuts is not None else []
        for at_s in cuts.at_s if cuts is not None else ():
            self.at(self._began + at_s, self._planned_cut)
        self._plan_next()

    def _plan_next(self) -> None:
        cuts = self.link.cuts
        if cuts is not None and cuts.every_s is not None:
            self.at(self.now() + self._schedule.expovariate(1.0 / cuts.every_s), self._chance_cut)

    def _chance_cut(self) -> None:
        self._planned_cut()
        self._plan_next()

    def _planned_cut(self) -> None:
        assert self.link.cuts is not None
        self._cut(self.link.cuts.away_s)

    def carried(self, size: int, up: bool) -> None:
        """So many bytes more have arrived."""
        self._carried[up] += size
        if self._amounts and sum(self._carried.values()) >= self._amounts[0] * 1e6:
            self._amounts.pop(0)
            self._planned_cut()

    def _cut(self, away_s: float) -> None:
        self.cuts += 1
        self._away_until = self.now() + away_s
        for each in tuple(self._connections):
            self.hang_up(each, reset=True)


class _Connection:
    """A client, the target, and the two ways between them. The first bytes wait for TCP's handshake."""

    def __init__(self, near: End, far: End, lanes: dict[bool, Lane], proxy: Proxy) -> None:
        self._ends, self._proxy, self.used = (near, far), proxy, False
        now = proxy.now()
        up = Passage(near, far, lanes[True], proxy, now + lanes[True].rtt_s)
        down = Passage(far, near, lanes[False], proxy, now + lanes[False].way.latency_ms / 1000)
        self.ways = (up, down)
        for way in self.ways:
            way.broken, way.ended = lambda: proxy.hang_up(self, reset=True), self._end
            way.carried = lambda size, upwards=way is up: self._count(size, upwards)  # type: ignore[misc]

    def _count(self, size: int, up: bool) -> None:
        self.used = True
        self._proxy.carried(size, up)

    def _end(self) -> None:
        if all(way.over for way in self.ways):
            self._proxy.hang_up(self, reset=False)

    def close(self, reset: bool) -> None:
        for end in self._ends:
            end.close(reset)


def _tell(end: End, event: int) -> None:
    """What the selector saw at one socket. Either may close it, after which it is -1 and the other has no meaning."""
    if event & selectors.EVENT_WRITE:
        end.writable()
    if event & selectors.EVENT_READ and end.socket.fileno() >= 0:
        end.readable()


def _place(url: str) -> tuple[str, Address]:
    """(scheme, where it is) of an address that can be dialled over TCP. Raises ConfigError."""
    scheme, _, rest = url.partition("://")
    if scheme == "memory":
        raise ConfigError(f"{url} leads over no line that could be shaped; use tcp://host:port")
    address = parse(f"tcp://{rest.rstrip('/')}" if scheme in ("http", "https") else url)
    if address.host == EVERYWHERE or address.port == 0:
        raise ConfigError(f"{url} is where a server may listen, not where one can be dialled; give its host and port")
    return scheme, address
