"""The parameters of a run: the true ones, the published ones, and the chain of deltas between published versions.

The idea (DESIGN, idea 5): at each version the server encodes true - published once, adds what it encoded to the
published vector, and keeps the payload. A worker that holds published version v and applies the deltas after v
holds exactly the newest published vector, bit for bit, because both sides add the same decoded numbers. What a lossy
codec left out stays in true - published and goes out later. A lossless codec needs no second vector: published is
true, and since one full vector costs what one delta costs, the answer is always the snapshot.

A snapshot goes out packed (codec `packed`, exact too) to a worker that asks for it; packed once a version, like deltas.

Rule of this file: a vector that was given out is never written again; it may still be on its way through a socket.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_async.codecs import Codec, Payload, State, bind, packed
from lightning_async.codecs.memory import Pool
from lightning_async.errors import ConfigError
from lightning_async.layout import Layout
from lightning_async.wire.checksum import checksum

SNAPSHOTS_KEPT = 3  # buffers for the next one; one is the usual, others were held longer by slow readers
DIGEST_EVERY = 16  # versions: a worker that comes to or past a multiple of it is told the digest
MARKED_BYTES = 2**18  # of the published vector that `mark` reads, or a sixteenth of it if that is more


@dataclass(frozen=True)
class Answer:
    """Parameters for one worker, in the words of `messages.Params`."""

    form: str
    base: int
    digest: int
    payload: tuple[Payload, ...]
    sums: tuple[int, ...] = ()  # checksums of the payload frames, computed once for all workers
    pieces: tuple[int, ...] = ()  # with fragments, of a chain or of values: which one each frame is of


@dataclass(frozen=True)
class Delta:
    """What encodes the published parameters of `version` less those before it; with fragments, of one piece."""

    version: int
    payload: Payload
    sum: int  # its checksum
    piece: int


class Store:
    """Parameters [d] and buffers [b] of one layout. Version 0 is what `start` was given."""

    def __init__(self, layout: Layout, codec: Codec, pieces: Sequence[tuple[int, ...]] = ()) -> None:
        self.layout, self._pieces = layout, pieces
        self.version = -1
        self.parameters = torch.empty(0, dtype=torch.float32)
        self.buffers = torch.empty(0, dtype=torch.float32)
        self._codecs = [bind(codec, layout.shapes(piece)) for piece in pieces] or [bind(codec, layout.shapes())]
        self._lossless = codec.lossless
        self._pool = Pool(4 * layout.d, SNAPSHOTS_KEPT)
        self._codec_states: list[State] = []  # one for each of the codecs
        self._values: dict[int, tuple[Payload, int]] = {}  # of pieces, until they change, and their checksums
        self._changed: list[int] = []  # with fragments: the version at which each piece changed last
        self._published = self.parameters
        self._given: Tensor | None = None  # the snapshot of this version, once somebody asked for it
        self._given_sum = -1
        self._deltas: deque[Delta] = deque()
        self._packer = packed()
        self._packed: tuple[Payload, int] | None = None  # of this version, once somebody asked for it; and its checksum
        self._packed_bytes = self._snapshot_bytes  # of the last that was packed
        self._digest = -1

    def start(self, parameters: Tensor, buffers: Tensor, version: int = 0) -> None:
        """Begin with `parameters` [d] and `buffers` [b], which are copied."""
        self.parameters, self.buffers = parameters.clone(), buffers.clone()
        self._published = self.parameters if self._lossless else parameters.clone()
        self._codec_states = [each.init(self._size(i)) for i, each in enumerate(self._codecs)]
        self._changed = [version] * len(self._pieces)
        self._values.clear()
        self._given, self._packed, self.version, self._digest = None, None, version, -1
        self._deltas.clear()

    def dump(self) -> dict[str, Tensor]:
        """Everything but the chain, as tensors that are never written again."""
        tensors = {"published": self.published, "buffers": self.buffers.clone()}
        if not self._lossless:
            tensors["parameters"] = self.parameters.clone()
        return tensors | {name: value.clone() for name, value in self._states().items()}

    def _states(self) -> dict[str, Tensor]:
        named = (
            (f"download/{i}/" if self._pieces else "download/", state) for i, state in enumerate(self._codec_states)
        )
        return {prefix + key: value for prefix, state in named for key, value in state.items()}

    def _size(self, group: int) -> int:
        """The length of what is encoded for a group."""
        entries = self.layout.parameters
        return sum(entries[i].size for i in self._pieces[group]) if self._pieces else self.layout.d

    def restore(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """After `start` from the published vector and the buffers: become all that `dump` gave, at `version`.

        In place: optimizers hold views of the parameters.
        """
        self.version = version
        if not self._lossless:
            self.parameters.copy_(tensors["parameters"])
        self._changed = [version] * len(self._pieces)
        self._values.clear()
        for i, state in enumerate(self._codec_states):
            prefix = f"download/{i}/" if self._pieces else "download/"
            self._codec_states[i] = {key: tensors[prefix + key].clone() for key in state}

    def advance(self, step: Callable[[Tensor], None], piece: int = 0) -> None:
        """Let `step` move the true parameters in place (with fragments: those of `piece`), then publish the version."""
        step(self.parameters)
        self.version += 1
        self._given, self._packed, self._digest = None, None, -1
        if self._pieces:
            self._changed[piece] = self.version
            self._values.pop(piece, None)
        if not self._lossless:
            self._publish_delta(piece)

    def _publish_delta(self, piece: int) -> None:
        codec = self._codecs[piece]
        try:
            encoded, self._codec_states[piece] = codec.encode(self._unpublished(piece), self._codec_states[piece])
        except ConfigError:  # beyond what the codec can write: this version goes out whole
            self._published.copy_(self.parameters)
            self._deltas.clear()
            return
        payload = bytes(encoded)
        decoded = codec.decode(payload, self._size(piece))
        if self._pieces:
            self.layout.spread(decoded, self._pieces[piece], self._published, 1.0)
        else:
            self._published.add_(decoded)
        self._deltas.append(Delta(self.version, payload, checksum(payload), piece))
        while self._deltas and self._chain_bytes() > self._snapshot_bytes:
            self._deltas.popleft()

    def _unpublished(self, piece: int) -> Tensor:
        if not self._pieces:
            return self.parameters - self._published
        part = self.layout.part(self.parameters, self._pieces[piece])
        return part.sub_(self.layout.part(self._published, self._pieces[piece]))

    @property
    def _snapshot_bytes(self) -> int:
        return 4 * self.layout.d

    def _chain_bytes(self) -> int:
        return sum(len(delta.payload) for delta in self._deltas)

    @property
    def published(self) -> Tensor:
        """The newest published parameters [d]; read only, never written again."""
        if self._given is None:
            self._given, self._given_sum = self._pool.copy(self._published), -1
        return self._given

    def answer(self, have: int, packed: bool = False) -> Answer:
        """What a worker that holds published version `have` (-1: none) needs: nothing, deltas, or the snapshot.

        `packed`: it can unpack one, and wants to.
        """
        if have == self.version:
            return Answer("unchanged", have, -1, ())
        form, base, digest, chain, pieces = self._changes(have, self._packed_bytes if packed else self._snapshot_bytes)
        if not chain:
            form, frame = self._whole(packed)
            base, chain = -1, [frame]
        elif have // DIGEST_EVERY != self.version // DIGEST_EVERY:
            digest = self._digest_of_published()
        buffers = vector_bytes(self.buffers.clone())
        payload, sums = zip(*chain, (buffers, checksum(buffers)), strict=True)
        return Answer(form, base, digest, payload, sums, pieces)

    def _changes(self, have: int, most: int) -> tuple[str, int, int, list[tuple[Payload, int]], tuple[int, ...]]:
        """What has changed since `have`, where that is known and takes fewer than `most` bytes; else no frames."""
        if self._lossless:
            pieces = tuple(piece for piece, version in enumerate(self._changed) if version > have >= 0)
            fewer = 0 < 4 * sum(map(self._size, pieces)) < min(most, self._snapshot_bytes)
            frames = [self._values_of(piece) for piece in pieces] if fewer else []
            return "pieces", have, -1, frames, pieces if fewer else ()
        chain = [delta for delta in self._deltas if delta.version > have >= 0]
        if len(chain) != self.version - have or sum(len(delta.payload) for delta in chain) >= most:
            chain = []
        pieces = tuple(delta.piece for delta in chain) if self._pieces else ()
        return "deltas", have, -1, [(delta.payload, delta.sum) for delta in chain], pieces

    def _values_of(self, piece: int) -> tuple[Payload, int]:
        """The published values of a piece, and their checksum; made once for all workers."""
        if piece not in self._values:
            payload = vector_bytes(self.layout.part(self._published, self._pieces[piece]))
            self._values[piece] = payload, checksum(payload)
        return self._values[piece]

    def _digest_of_published(self) -> int:
        """The checksum of the published vector, computed once a version at most."""
        if self._digest < 0:
            self._digest = vector_digest(self._published)
        return self._digest

    def mark(self) -> int:
        """A checksum of a part of the published vector, of another part in each version: all of it in 16 versions."""
        length = max(MARKED_BYTES // 4, -(-self.layout.d // DIGEST_EVERY))
        parts = -(-self.layout.d // length)
        start = self.version % parts * length if parts else 0
        return vector_digest(self._published[start : start + length])

    def _whole(self, packed: bool) -> tuple[str, tuple[Payload, int]]:
        """The form and frame of a snapshot; packed only where that makes it shorter."""
        if packed and self._packed is None:
            payload, _ = self._packer.encode(self.published, {})
            self._packed = payload, checksum(payload)
            self._packed_bytes = min(memoryview(payload).nbytes, self._snapshot_bytes)
        if packed and self._packed is not None and self._packed_bytes < self._snapshot_bytes:
            return "packed", self._packed
        return "snapshot", self._snapshot()

    def _snapshot(self) -> tuple[Payload, int]:
        """The newest published vector's bytes and their checksum."""
        payload = vector_bytes(self.published)
        if self._given_sum < 0:
            self._given_sum = checksum(payload)
        return payload, self._given_sum


def vector_bytes(vector: Tensor) -> memoryview:
    """The bytes of a contiguous CPU vector, as a view that keeps its memory alive."""
    return vector.detach().numpy().data.cast("B") if vector.numel() else memoryview(b"")


def vector_digest(vector: Tensor) -> int:
    """The checksum of a float32 vector's bytes (docs/protocol.md, section 6): equal vectors, equal digests."""
    return checksum(vector_bytes(vector))
