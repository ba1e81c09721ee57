"""What is fuzzed: each target takes any bytes and returns; what its reader may raise it expects, all else is a bug.

Bytes that a checksum would stop at once get a right one in half of the cases: an attacker computes it too.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import msgpack
import torch

from lightning_async.codecs import codec, envelope
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError, PayloadError
from lightning_async.layout import read_manifest
from lightning_async.server import Coordinator
from lightning_async.server.actions import Received, Send, Tick
from lightning_async.transport import allowed, invitations
from lightning_async.transport.cutting import digest
from lightning_async.transport.freight import Freight
from lightning_async.wire import frames as f
from lightning_async.wire import messages as m
from lightning_async.wire.parts import PARTS, Chunk, Drop, Have, Offer, Part
from lightning_async.wire.session import State, advance, fits
from lightning_async.wire.tensors import unpack_tensors

CODECS = (
    "none", "fp16", "bf16", "int8", "int4", "signsgd", "packed", "either()", "topk(density=0.05)",
    "randomk(density=0.1)", "topk(density=0.05, values='int8')", "auto", "chain(topk(density=0.1), int8())",
)  # fmt: skip
MANIFEST = [["w", [2, 3], "float32", "parameter"], ["b", [2], "float32", "parameter"], ["m", [2], "float32", "buffer"]]
LAYOUT = read_manifest(MANIFEST)
PEERS = (b"peer a", b"peer b", b"peer c", b"nobody")
ROOM = 2  # of a freight, for each owner
LIFE = 400  # inputs of one coordinator
LARGE = f.pack(f.Envelope(7, m.Params(form="snapshot", version=1), (bytes(300_000),)))
SPLIT = b"\xfe\xff\xfe"


def frames(data: bytes) -> None:
    """Any frames: an Envelope, which can be sent again, or a FrameError."""
    parts = data[1:].split(SPLIT)
    if data[:1] and data[0] % 2:
        parts = [b"", f.sealed(parts[0]), *parts[1:]]
    with contextlib.suppress(f.FrameError):
        envelope_ = f.unpack(parts, verify=bool(data[0] % 4 < 2) if data else True)
        assert f.unpack(f.pack(envelope_)).message == envelope_.message


def decoders(data: bytes) -> None:
    """Any payload for any codec: a finite vector of the right length, or a PayloadError."""
    if len(data) < 3:
        return
    member, d = codec(CODECS[data[0] % len(CODECS)]), data[1]
    payload: bytes | memoryview = data[3:]
    if data[2] % 2 and len(payload) >= envelope.HEADER_BYTES:
        body = bytearray(payload)
        payload = envelope.seal(torch.frombuffer(body, dtype=torch.uint8).numpy(), body[0] % 16, d)
    with contextlib.suppress(PayloadError):
        vector = member.decode(payload, d)
        assert vector.shape == (d,)
        assert bool(torch.isfinite(vector).all())
    if member.decode_sparse is not None:
        with contextlib.suppress(PayloadError):
            assert member.decode_sparse(payload, d).size == d


def _unpacked(data: bytes) -> Any:
    """What msgpack finds in `data` within the limits of a header's field, None for nothing."""
    try:
        return msgpack.unpackb(data, max_array_len=1000, max_map_len=1000, strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        return None


def tensors(data: bytes) -> None:
    """Any lists and frames of a Load."""
    lists = _unpacked(data[8:])
    if isinstance(lists, list) and len(lists) == 3 and all(isinstance(one, list) for one in lists):
        with contextlib.suppress(PayloadError):
            unpack_tensors([str(key) for key in lists[0]], lists[1], [str(kind) for kind in lists[2]], [data[:8]])


def manifests(data: bytes) -> None:
    """Any manifest of a Hello: a layout or a PayloadError."""
    manifest = _unpacked(data)
    if isinstance(manifest, list):
        with contextlib.suppress(PayloadError):
            read_manifest(manifest)


def lists(data: bytes) -> None:
    """Any line of an allow-list and any join line."""
    text = data.decode(errors="replace")
    with contextlib.suppress(ValueError):
        allowed.read_line(text)
    with contextlib.suppress(ConfigError):
        invitations.read(text)


def sessions(data: bytes) -> None:
    """Any messages of any peers to a run that goes on: fitting answers, and never an exception."""
    coordinator = _run(next(_inputs) // LIFE)
    for number, part in enumerate(data.split(SPLIT)[:8], 1):
        if len(part) < 2:
            continue
        peer, now = PEERS[part[0] % len(PEERS)], coordinator.run.now + part[1] / 64
        head, _, payload = part[2:].partition(b"\xfd\xfd")
        try:
            got = f.unpack([b"", f.sealed(head), *([payload, b""] if payload else [])], verify=False)
        except f.FrameError:
            coordinator.handle(Tick(), now)
            continue
        actions = coordinator.handle(Received(peer, f.Envelope(number, got.message, got.payload)), now)
        for action in actions:
            if isinstance(action, Send):
                f.pack(action.envelope, action.sums)
                if action.peer == peer and action.envelope.id == number and type(got.message) in m.REQUESTS:
                    assert fits(got.message, action.envelope.message)
    for state, kind in itertools.product(State, (m.Status(), m.Beat(), m.Ack(version=0))):
        advance(state, kind)


def freight(data: bytes) -> None:
    """Any parts of large messages, of any peers in any order, while one to them is under way: what they complete is
    frames, nothing else raises, and no more is kept than has come."""
    if data:
        yard, clock = _yard(bool(data[0] % 2))
        came = sum(_part(yard, clock, part) for part in data[1:].split(SPLIT)[:16] if len(part) > 2)
        assert sum(ways.coming[0] for ways in yard.under_way().values()) <= came
        assert all(len(found) <= ROOM for found in yard._gathered.values())
        assert len(yard._cuts) <= 1
        clock[0] += 1000.0
        yard.tick()
        assert not yard.under_way(), "whoever says no more is forgotten"


def _yard(sends: bool) -> tuple[Freight, list[float]]:
    """A server's end, and its clock."""
    clock = [0.0]
    owners = dict(zip(PEERS, ("a", "b", "a"), strict=False))
    yard = Freight(lambda peer, frames: True, lambda peer: owners.get(peer, ""), lambda: clock[0], ROOM, keep_s=500.0)
    yard.largest_bytes, yard.takers, yard._salt = 2**20, set(PEERS), bytes(16)
    if sends:
        yard.send(PEERS[0], LARGE)
    return yard, clock


def _part(yard: Freight, clock: list[float], part: bytes) -> int:
    """Its bytes of payload. In half of the cases a chunk gets the right digest: an attacker computes it too."""
    clock[0] += part[1] / 16
    head, _, payload = part[2:].partition(b"\xfd\xfd")
    with contextlib.suppress(f.FrameError):
        got = f.unpack([b"", f.sealed(head), *([payload] if payload else [])], verify=False)
        if isinstance(got.message, Chunk) and part[0] & 64:
            got = replace(got, message=replace(got.message, digest=digest(payload)))
        if isinstance(got.message, PARTS):
            whole = yard.take(PEERS[part[0] % len(PEERS)], got)
            if whole is not None:
                f.unpack(whole, verify=False)
        yard.tick()
    return len(payload)


_inputs = itertools.count()


@cache
def _life(number: int) -> Coordinator:
    coordinator = Coordinator(RunConfig(local_steps=2, quorum=2, compression="int8"), "fuzz")
    for rank, name in enumerate("ab"):
        hello = m.Hello(worker=name, instance="1", tensors=MANIFEST, digest=LAYOUT.digest, rank=rank)
        coordinator.handle(Received(PEERS[rank], f.Envelope(1, hello)), 0.0)
    start = (bytes(4 * LAYOUT.d), bytes(4 * LAYOUT.b))
    coordinator.handle(Received(PEERS[0], f.Envelope(2, m.Init(digest=LAYOUT.digest), start)), 0.0)
    assert coordinator.run.version == 0
    return coordinator


def _run(number: int) -> Coordinator:
    """The coordinator of this life; the ones before are forgotten."""
    if number != _now[0]:
        _life.cache_clear()
        _now[0] = number
    return _life(number)


_now = [0]
TARGETS: dict[str, Callable[[bytes], None]] = {
    "frames": frames,
    "decoders": decoders,
    "tensors": tensors,
    "manifests": manifests,
    "lists": lists,
    "sessions": sessions,
    "freight": freight,
}


def seeds(target: str) -> list[bytes]:
    """Inputs of the right form, to begin with."""
    return list(_SEEDS[target]())


def _messages() -> list[bytes]:
    push = m.Push(seq=1, base=0, digest=LAYOUT.digest, steps=2)
    requests: list[m.Message] = [
        m.Hello(worker="c", instance="2", tensors=MANIFEST, digest=LAYOUT.digest),
        m.Hello(worker="o", instance="3", role="observer"),
        m.Init(digest=LAYOUT.digest), push, m.Pull(have=0, wait_s=1.0), m.Pull(), m.Beat(sent_bytes=5), m.Leave(),
        m.Lease(stream="s", length=10, count=3), m.Share(key="k", value="v"), m.Fetch(), m.Status(),
        m.Load(keys=["a"], shapes=[[2]], dtypes=["float32"]), m.Pardon(worker="a", token="t"), m.Enrol(token="t"),
        m.Order(what="stop"), m.Probe(down_bytes=5, tensors=MANIFEST),
        m.Receipt(seq=1, accepted=True, version=2), m.Params(form="snapshot", version=1),
    ]  # fmt: skip
    return [bytes(f.pack(f.Envelope(7, request))[1])[f.PREFIX_BYTES :] for request in requests]


def _payloads() -> list[bytes]:
    found = []
    for number, spec in enumerate(CODECS):
        member = codec(spec)
        for d in (1, 60, 250):
            payload = bytes(member.encode(torch.linspace(-1, 1, d), member.init(d))[0])
            found += [bytes((number, d, sealed)) + payload for sealed in (0, 1)]
    return found


def _session_inputs() -> list[bytes]:
    heads, member = _messages(), codec("int8")
    payload = bytes(member.encode(torch.ones(LAYOUT.d), member.init(LAYOUT.d))[0])
    parts = [bytes((peer, 3)) + head for peer in range(3) for head in heads]
    pushes = [part + b"\xfd\xfd" + payload for part in parts]
    return [*parts, *pushes, SPLIT.join(parts[:6]), SPLIT.join(pushes[3:9])]


def _freight_inputs() -> list[bytes]:
    """Offers and chunks that make a message, and what a receiver says of the one that is under way."""
    header = bytes(f.pack(f.Envelope(7, m.Push(seq=1, base=0, digest=LAYOUT.digest), (bytes(9), b"123")))[1])
    name = next(iter(_yard(True)[0]._cuts["a"]))

    def said(part: Part, payload: bytes = b"", peer: int = 64) -> bytes:
        return bytes((peer, 3)) + bytes(f.pack(f.Envelope(7, part))[1])[f.PREFIX_BYTES :] + b"\xfd\xfd" + payload

    offer = said(Offer(transfer="t", sizes=[9, 3]), header)
    chunks = [said(Chunk(transfer="t", offset=at, digest="")) + bytes(size) for at, size in ((0, 5), (5, 4), (9, 3))]
    haves = [Have(transfer=name, offset=n, round=1, missing=n == 9) for n in (-1, 0, 9, 65_536, 300_000)]
    told = [said(have) for have in haves]
    whole = [offer, *chunks, said(Drop(transfer="t"))]
    return [
        b"\1" + SPLIT.join(parts) for parts in (whole, told, [*whole, *told], [offer, chunks[1], *whole], *zip(whole))
    ]


_SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "frames": lambda: [bytes((way,)) + head for way in (0, 1, 3) for head in _messages()],
    "decoders": _payloads,
    "tensors": lambda: [bytes(8) + msgpack.packb([["a"], [[2]], ["float32"]]), bytes(8) + msgpack.packb([[], [], []])],
    "manifests": lambda: [msgpack.packb(MANIFEST), msgpack.packb([]), msgpack.packb([["x", [2**40], "float32", "b"]])],
    "lists": lambda: [
        b"alice worker " + b"0f" * 32 + b" 3 # x",
        b"tcp://host:1/" + b"0f" * 32 + b"/" + b"0" * 12 + b"-" + b"0" * 32,
    ],
    "sessions": _session_inputs,
    "freight": _freight_inputs,
}
