"""Fetching the published parameters: when to ask, what an answer means, what it decodes to.

Newer parameters are worth most while a round runs: put under it at once, they keep workers from pulling apart. So one
question is left standing at the server ("tell me when there is something newer than v"), and what it brings is merged
at the next step. It is asked again only after a pause that grows with the size of the last answer, so that downloads
take a quarter of the link at most. Who sends an update needs no question of his own while that one stands: the server
answers in order, so a receipt without parameters before it means that there are none.

Rule of this file: it belongs to the courier's thread, except `arrivals`, from which the main thread takes.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from lightning_async.codecs import Codec, bind, codec
from lightning_async.errors import ProtocolError
from lightning_async.layout import Layout
from lightning_async.transport.base import Frame
from lightning_async.wire.fields import read
from lightning_async.wire.messages import Params, Pull, Receipt, Refused, Reply
from lightning_async.wire.tensors import read_floats
from lightning_async.worker.replica import Arrival

HOLD_S = 10.0  # how long the server may hold a question for a newer version
PAUSE_S = 0.1  # the shortest time between two standing questions
PACKED_BYTES = 1 << 20  # a snapshot shorter than this is not worth packing
PACKED_BELOW = 12.5e6  # bytes per second of the link: it saves twice the time that packing and unpacking take, or more
RIDE_BYTES = 1 << 18  # parameters up to this size come with a receipt, which costs less than a question
CHANGES = ("deltas", "pieces")  # forms that say what has changed since the version held
SHARE = 0.25  # of the link that standing questions may take
log = logging.getLogger(__name__)

Ask: TypeAlias = Callable[[Pull, Callable[[Reply, tuple[Frame, ...]], None]], None]


class Downloads:
    """What this worker holds of the published parameters, and its questions for more.

    Args:
        layout: of what is shared; an observer's has no tensors.
        ask: sends a Pull and calls back with the answer.
        bytes_per_s: the link's measured speed; None before it is known.
    """

    def __init__(
        self,
        layout: Layout,
        ask: Ask,
        bytes_per_s: Callable[[], float | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout, self._ask, self._bytes_per_s, self._clock = layout, ask, bytes_per_s, clock
        self._codecs: list[Codec] = []  # known once the run's configuration is; with fragments one for each piece
        self._sizes: list[int] = []  # of what each of them decodes
        self.have = -1
        self.arrivals: deque[Arrival] = deque()
        self.stop_asked = False
        self.standing_allowed = False
        self._standing = False
        self._asked = 0  # questions under way that somebody waits for
        self._owed: list[tuple[bool, Callable[[], None]]] = []  # (only a newer version will do, whom to tell)
        self._next_standing = 0.0

    def begin(self, download: Codec, pieces: Sequence[Sequence[int]]) -> None:
        """The run's configuration is known: what encodes deltas, and the pieces of a run with fragments."""
        shapes = [self._layout.shapes(piece) for piece in pieces] or [self._layout.shapes()]
        self._codecs = [bind(download, each) for each in shapes]
        self._sizes = [sum(math.prod(shape) for shape in each) for each in shapes]

    def fetch(self, done: Callable[[], None], newer: bool = False, after_push: bool = False) -> None:
        """Get what is published now, or with `newer` wait for a version after the one held; then call `done`.

        `after_push`: the caller will call `settle` at its receipt, so a standing question will do.
        """
        self._owed.append((newer, done))
        if not (after_push and self._standing):
            self._question(HOLD_S if newer else 0.0)

    def ride(self, done: Callable[[], None]) -> int | None:
        """The version held, when the receipt of a Push is to bring what is newer (`came` is told of it, then `done` is
        called). None when that does not pay: `fetch` is to be called."""
        if self._standing or 4 * self._layout.d > RIDE_BYTES:
            return None
        self._owed.append((False, done))
        self._asked += 1
        return self.have

    def came(self, reply: Reply, payload: tuple[Frame, ...]) -> None:
        """The answer to a Push that was to bring parameters; a server need not, then they are asked for."""
        if isinstance(reply, Receipt) and reply.news is not None:
            try:
                news = read(Params, reply.news)
            except ValueError as error:
                raise ProtocolError(f"a receipt with news that are no Params: {error}") from None
            self._on_answer(news, payload, 0.0)
        else:
            self._asked -= 1
            self._question(0.0)

    def settle(self, arriving: bool = False) -> None:
        """A receipt has come: whatever was published before it would be here, if a question has stood since, but for
        what is `arriving` in chunks, which a receipt overtakes."""
        if self._standing and not arriving:
            self._pay(newer=False)

    def forget(self, done: Callable[[], None]) -> None:
        """Get a whole snapshot, whatever is held."""
        self.have = -1
        self.fetch(done)

    @property
    def due_at(self) -> float:
        """When `tick` lets a question stand, as things are; inf for never."""
        idle = not (self._standing or self._asked or self.arrivals or self.stop_asked)
        return self._next_standing if self.standing_allowed and idle and self.have >= 0 else math.inf

    def tick(self) -> None:
        """Let a question stand when none does and the last answer has been taken."""
        if self._clock() >= self.due_at:
            self._standing = True
            self._ask(Pull(have=self.have, wait_s=HOLD_S, packed=self._packed), self._on_standing)

    def _question(self, wait_s: float) -> None:
        self._asked += 1
        question = Pull(have=self.have, wait_s=wait_s, packed=self._packed)
        self._ask(question, lambda reply, payload: self._on_answer(reply, payload, wait_s))

    @property
    def _packed(self) -> bool:
        """Whether a snapshot would be here sooner packed; a link that was not measured yet is taken for slow."""
        return 4 * self._layout.d >= PACKED_BYTES and (self._bytes_per_s() or 0.0) < PACKED_BELOW

    def _on_standing(self, reply: Reply, payload: tuple[Frame, ...]) -> None:
        self._standing = False
        self._pause(payload)
        if self._take(reply, payload):
            self._pay(newer=True)
        elif self._owed and not self._asked:
            self._question(HOLD_S if all(newer for newer, _ in self._owed) else 0.0)

    def _on_answer(self, reply: Reply, payload: tuple[Frame, ...], wait_s: float) -> None:
        self._asked -= 1
        self._pause(payload)
        if isinstance(reply, Params) and reply.form in CHANGES and reply.base != self.have < reply.version:
            self._question(0.0)  # an answer to an older question; what it is based on is not what we hold
            return
        came = self._take(reply, payload)
        self._pay(newer=came or isinstance(reply, Refused) or self.stop_asked)
        if self._owed and not self._asked:
            self._question(HOLD_S)  # held for long enough, and still no newer version: keep asking

    def _pause(self, payload: tuple[Frame, ...]) -> None:
        took_s = sum(len(frame) for frame in payload) / (self._bytes_per_s() or 1e9)
        self._next_standing = self._clock() + max(PAUSE_S, took_s * (1 / SHARE - 1))

    def _pay(self, newer: bool) -> None:
        """Tell those who wait; those who need a newer version only when it has come."""
        due = [done for needs, done in self._owed if newer or not needs]
        self._owed = [(needs, done) for needs, done in self._owed if needs and not newer]
        for done in due:
            done()

    def _take(self, reply: Reply, payload: tuple[Frame, ...]) -> bool:
        """Keep what an answer brings; whether it brought something newer."""
        if isinstance(reply, Refused):
            log.info("no parameters: %s", reply.detail)
            return False
        assert isinstance(reply, Params)
        self.stop_asked = self.stop_asked or reply.stop
        if (
            reply.form == "unchanged"
            or reply.version < self.have
            or (reply.form in CHANGES and reply.base != self.have)
        ):
            return False
        self.arrivals.append(self._read(reply, payload))
        self.have = reply.version
        return True

    def _read(self, params: Params, payload: tuple[Frame, ...]) -> Arrival:
        if params.form not in CHANGES:
            self._pieces_of(params, len(params.pieces))
            return read_snapshot(params, payload, self._layout.d, self._layout.b)
        vectors, buffers = _parted(params, payload, self._layout.b)
        pieces = self._pieces_of(params, len(vectors))
        values = params.form == "pieces"
        codecs = [codec("none") if values else self._codecs[piece] for piece in pieces]
        decoded = zip(codecs, vectors, pieces, strict=True)
        deltas = tuple(each.decode(frame, self._sizes[piece]) for each, frame, piece in decoded)
        held = _included(params)
        whole = len(self._codecs) == 1
        return Arrival(params.version, held, None, deltas, buffers, params.digest, () if whole else pieces, values)

    def _pieces_of(self, params: Params, frames: int) -> tuple[int, ...]:
        """Which piece each frame is of; 0 for each where the model is in one."""
        count = len(self._codecs)
        if params.form == "pieces" and count == 1:
            raise ProtocolError("Params in pieces; this run has one")
        pieces = tuple(params.pieces) if count > 1 else (0,) * frames
        if len(pieces) != frames or not all(0 <= piece < count for piece in pieces):
            raise ProtocolError(f"Params of {frames} frames for pieces {str(pieces)[:60]}; this run has {count}")
        if len(params.included_of) != (count if count > 1 else 0):
            raise ProtocolError(f"Params that tell {len(params.included_of)} pieces apart; this run has {count}")
        return pieces


def read_snapshot(params: Params, payload: tuple[Frame, ...], d: int, b: int) -> Arrival:
    """The parameters [d] and buffers [b] in a snapshot. Raises ProtocolError, PayloadError."""
    vectors, buffers = _parted(params, payload, b)
    if params.form not in ("snapshot", "packed"):
        raise ProtocolError(f"Params of form {params.form[:20]!r}, expected a snapshot")
    whole = codec("none" if params.form == "snapshot" else "packed").decode(vectors[0], d)
    return Arrival(params.version, _included(params), whole, (), buffers, params.digest)


def _included(params: Params) -> int | tuple[int, ...]:
    return tuple(params.included_of) if params.included_of else params.included


def _parted(params: Params, payload: tuple[Frame, ...], b: int) -> tuple[list[Frame], Tensor]:
    *vectors, last = payload or (b"",)
    if len(last) != 4 * b or not vectors:
        raise ProtocolError(f"Params of form {params.form[:20]!r} with {len(payload)} frames")
    return vectors, read_floats(last)
