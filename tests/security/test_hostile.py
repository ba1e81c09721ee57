"""A worker that was let in and means harm, message by message: each is refused and counted, and nobody else notices."""

from __future__ import annotations

import contextlib
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import pytest
import torch
from eventually import ENOUGH_S
from keyring import Keyring

from lightning_async import AsyncOptimizer
from lightning_async.codecs import codec, envelope
from lightning_async.codecs.packed import DEFLATED, HEAD, KIND
from lightning_async.config import RunConfig
from lightning_async.errors import NetworkError, RefusedError
from lightning_async.layout import shared_tensors
from lightning_async.server import ServerThread
from lightning_async.server.members import Member
from lightning_async.transport import Connection, connect
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, Frame, pack, unpack

SIZE = 64
MODEL = torch.nn.Linear(SIZE, SIZE)
LAYOUT = shared_tensors(MODEL).layout


@pytest.fixture
def server(ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerThread]:
    monkeypatch.setattr("lightning_async.server.service.GOODBYE_S", 0.0)  # eve does not leave of herself
    with ServerThread(RunConfig(local_steps=1, compression="packed"), keys=ring.folder) as running:
        yield running


@pytest.fixture
def honest(server: ServerThread, ring: Keyring, tmp_path: Path) -> Iterator[Honest]:
    started = Honest(server, ring.file(ring.key("honest"), tmp_path / "honest.key"))
    yield started
    started.optimizer._attachment.detach()
    started.optimizer.engine.close("the test is over")


class Honest:
    def __init__(self, server: ServerThread, file: Path) -> None:
        self.model = torch.nn.Linear(SIZE, SIZE)
        sgd = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.optimizer = AsyncOptimizer(sgd, self.model, server.address, key=file)

    def round_s(self) -> float:
        """How long one round takes, its update accepted and the newest parameters fetched."""
        began = time.perf_counter()
        self.optimizer.zero_grad()
        self.model(torch.ones(2, SIZE)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.engine.flush()
        return time.perf_counter() - began


@pytest.fixture
def eve(server: ServerThread, ring: Keyring, honest: Honest) -> Iterator[Eve]:
    with contextlib.closing(connect(server.address, key=ring.key("eve"))) as line:
        yield Eve(line, server)


class Eve:
    """Says what she likes, in messages of the right form or of none."""

    def __init__(self, line: Connection, server: ServerThread) -> None:
        self.line, self._server, self._id = line, server, 0
        hello = m.Hello(worker="eve", instance="1", tensors=LAYOUT.manifest, digest=LAYOUT.digest)
        assert isinstance(self.says(hello), m.Welcome)

    @property
    def member(self) -> Member:
        found = self._server.coordinator.run.members.named("eve")
        assert found is not None
        return found

    def says(self, message: m.Message, payload: Sequence[Frame] = ()) -> m.Message:
        self._id += 1
        return self.sends(pack(Envelope(self._id, message, tuple(payload))))

    def sends(self, frames: Sequence[Frame]) -> m.Message:
        self.line.send(frames)
        answer = self.line.receive(ENOUGH_S)
        assert answer is not None
        return unpack(answer).message

    def push(self, seq: int, payload: Frame, **values: object) -> m.Message:
        base = self._server.coordinator.run.version
        fields = {"seq": seq, "base": base, "digest": LAYOUT.digest, **values}
        return self.says(m.Push(**fields), (payload, b""))  # type: ignore[arg-type]


def update() -> bytes:
    vector = torch.zeros(LAYOUT.d)
    return bytes(codec("packed").encode(vector, None)[0])


def bomb(bytes_each: int) -> bytes:
    """Four planes that inflate to far more than the model has."""
    plane = zlib.compress(bytes(bytes_each), 9)
    parts = [HEAD.pack(DEFLATED, len(plane)) + plane] * 4
    return bytes(envelope.joined(parts, KIND, LAYOUT.d))


def highest_kib() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def test_a_decompression_bomb_stays_small(eve: Eve, honest: Honest) -> None:
    payload = bomb(4_000_000)
    assert len(payload) < codec("packed").max_bytes(LAYOUT.d), "it looks like any other update"
    larger = bomb(2**29 // 4)
    before = highest_kib()
    for seq, bytes_of_it in enumerate((payload, larger), 1):
        receipt = eve.push(seq, bytes_of_it)
        assert isinstance(receipt, m.Receipt)
        assert receipt.reason in ("payload", "length")
    assert highest_kib() - before < 64 * 1024
    assert eve.member.accepted == 0
    honest.round_s()


def test_what_is_not_whole_or_altered_is_refused(eve: Eve, honest: Honest) -> None:
    good = update()
    for seq, bad in enumerate([b"", good[:-1], good[:10], good + b"\0", bytes(len(good))], 1):
        receipt = eve.push(seq, bad)
        assert isinstance(receipt, m.Receipt)
        assert not receipt.accepted
    for at in (20, len(good) // 2, len(good) - 1):
        altered = bytearray(good)
        altered[at] ^= 16
        receipt = eve.push(10 + at, bytes(altered))
        assert isinstance(receipt, m.Receipt)
        assert not receipt.accepted
        assert "altered" in receipt.detail
    frames = pack(Envelope(99, m.Push(seq=9, base=0, digest=LAYOUT.digest), (good, b"")))
    head = bytearray(bytes(frames[1]))
    head[-3] ^= 1
    eve.line.send([b"", bytes(head), *frames[2:]])  # nobody knows whose it is, so nobody answers
    answer = eve.sends([*frames[:2], good[:-1] + b"\x77", b""])
    assert isinstance(answer, m.Refused)
    assert "altered on the way" in answer.detail
    assert eve.member.accepted == 0
    assert sum(eve.member.refused.values()) == 8
    honest.round_s()


def test_numbers_out_of_order_or_again_count_once(eve: Eve, honest: Honest) -> None:
    good = update()
    first = eve.push(5, good)
    assert isinstance(first, m.Receipt)
    assert first.accepted
    assert eve.push(5, good) == first, "the same receipt again"
    for seq in (4, 1, 0, -3, -(2**63)):
        late = eve.push(seq, good)
        assert isinstance(late, m.Receipt)
        assert (late.accepted, late.reason) == (False, "sequence")
    future = eve.push(6, good, base=10**6)
    assert isinstance(future, m.Receipt)
    assert future.reason == "future_base"
    assert eve.member.accepted == 1
    honest.round_s()


def test_requests_that_its_state_does_not_allow(eve: Eve, honest: Honest) -> None:
    requests: list[m.Request] = [
        m.Load(keys=["a"], shapes=[[2**40]], dtypes=["float64"]),
        m.Lease(stream="s", length=2**62, count=2**62),
        m.Order(what="stop"),
        m.Pardon(worker="eve", token="guess"),
        m.Hello(worker="honest", instance="2", tensors=LAYOUT.manifest, digest=LAYOUT.digest),
    ]
    for request in requests:
        assert isinstance(eve.says(request), m.Refused), request
    assert isinstance(eve.says(m.Ack(version=3)), m.Refused), "an answer is no request"
    honest.round_s()


def test_a_round_of_an_honest_worker_takes_as_long_beside_a_flood(
    server: ServerThread, eve: Eve, honest: Honest
) -> None:
    """Generously: bench/keys.py measures how much longer."""
    alone = median(honest.round_s() for _ in range(10))
    ending = threading.Event()
    bad = [b"", b"not a header", bytes(100_000)]

    def flood() -> None:
        while not ending.is_set():
            with contextlib.suppress(NetworkError):
                eve.line.send(bad)
            with contextlib.suppress(RefusedError):
                eve.line.receive(0.0)
            ending.wait(0.0005)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    try:
        beside = median(honest.round_s() for _ in range(20))
    finally:
        ending.set()
        thread.join()
    assert server._service.damaged > 0
    assert beside < 20 * alone + 0.5
