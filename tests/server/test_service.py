"""The service over real sockets: whatever strangers send, a good client is served, and its turn comes soon."""

from __future__ import annotations

import itertools
import logging
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import zmq
from eventually import ENOUGH_S, eventually
from ports import free
from room import BUFFERS, LAYOUT, START, TENSORS, raw

from lightning_async.config import RunConfig
from lightning_async.server import ServerThread, publishing, sharing
from lightning_async.server.run import Run
from lightning_async.transport import Connection, connect
from lightning_async.wire import frames as wire
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, Frame, pack, unpack
from lightning_async.wire.messages import Reason


class Client:
    """A worker of hand-made messages."""

    def __init__(self, address: str, name: str = "good") -> None:
        self.line: Connection = connect(address)
        self._id = self._seq = 0
        self.name = name

    def ask(self, message: m.Request, payload: tuple[Frame, ...] = ()) -> m.Message:
        self._id += 1
        self.line.send(pack(Envelope(self._id, message, payload)))
        return self.answer()

    def answer(self) -> m.Message:
        frames = self.line.receive(ENOUGH_S)
        assert frames is not None, f"no answer within {ENOUGH_S:.0f} s"
        return unpack(frames).message

    def join(self) -> Client:
        assert isinstance(
            self.ask(m.Hello(worker=self.name, instance="1", tensors=TENSORS, digest=LAYOUT.digest)), m.Welcome
        )
        assert isinstance(self.ask(m.Init(digest=LAYOUT.digest), (raw(START), raw(BUFFERS))), m.Ack)
        return self

    def push(self) -> m.Message:
        self._seq += 1
        return self.ask(m.Push(seq=self._seq, base=0, digest=LAYOUT.digest), (raw(torch.ones(8)), b""))

    def burst(self, count: int) -> None:
        """`count` questions at once, then their answers."""
        for _ in range(count):
            self._id += 1
            self.line.send(pack(Envelope(self._id, m.Beat())))
        for _ in range(count):
            assert isinstance(self.answer(), m.Ack)


@pytest.fixture
def server() -> Iterator[ServerThread]:
    with ServerThread(RunConfig(staleness="unbounded")) as server:
        yield server


@pytest.fixture
def good(server: ServerThread) -> Iterator[Client]:
    client = Client(server.address)
    try:
        yield client.join()
        client.ask(m.Leave())
    finally:
        client.line.close()


def tcp(address: str, data: bytes) -> None:
    """Send raw bytes and hang up."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=ENOUGH_S) as line:
        line.sendall(data)


def header(**fields: object) -> bytes:
    import msgpack

    return wire.sealed(msgpack.packb(fields))


def test_a_connection_that_speaks_http_or_nonsense(server: ServerThread, good: Client) -> None:
    for data in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(range(256)) * 50, b"\xff" * 64, b""):
        tcp(server.address, data)
        assert good.push().accepted  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"", header(t="Dance", i=7, c=[])], Reason.PROTOCOL),
        ([b"", header(t="Push", i=7, c=[])], Reason.PROTOCOL),
        ([b"", header(t="Pull", i=7, c=[], have="x")], Reason.PROTOCOL),
        ([b"", header(t="Welcome", i=7, c=[])], Reason.PROTOCOL),
        ([b"", wire.sealed(header(t="Hello", i=7)[wire.PREFIX_BYTES :], version=99)], Reason.VERSION),
        ([b"", header(t="Pull", i=7, c=[5]), b"abc"], Reason.PROTOCOL),
    ],
)
def test_a_message_that_is_none_is_answered_by_its_reason(
    server: ServerThread, good: Client, frames: list[bytes], reason: Reason
) -> None:
    stranger = Client(server.address)
    try:
        stranger.line.send(frames)
        answer = stranger.answer()
        assert isinstance(answer, m.Refused)
        assert answer.reason == reason.value
        assert good.push().accepted  # type: ignore[union-attr]
    finally:
        stranger.line.close()


@pytest.mark.parametrize(
    "frames", [[b"x"], [b"", b""], [b"", b"LA"], [b"", b"LA\x01\0\xc1"], [b""] * 9, [b"", header(t="Pull")]]
)
def test_frames_that_cannot_be_answered_are_counted(
    server: ServerThread, good: Client, frames: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Client(server.address)
    try:
        with caplog.at_level(logging.WARNING):
            stranger.line.send(frames)
            assert isinstance(stranger.ask(m.Status()), m.Report), "the same connection is served afterwards"
        assert "message 1 that could not be read" in caplog.text
        assert good.push().accepted  # type: ignore[union-attr]
    finally:
        stranger.line.close()


def test_a_plain_req_socket_can_ask_for_the_status(server: ServerThread, good: Client) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as plain:
        plain.setsockopt(zmq.LINGER, 0)
        plain.connect(server.address)
        plain.send(pack(Envelope(3, m.Status()))[1])
        assert plain.poll(1000 * ENOUGH_S)
        answer = unpack([b"", *plain.recv_multipart()])
        assert isinstance(answer.message, m.Report)
        plain.send(b"what")
        assert not plain.poll(300)
    assert good.push().accepted  # type: ignore[union-attr]


FLOODS: dict[str, Callable[[], list[Frame]]] = {
    "garbage": lambda: [b"", b"\xff" * 2000],
    "half a frame": lambda: [b"", pack(Envelope(1, m.Status()))[1][:-3]],
    "status": lambda: pack(Envelope(1, m.Status())),
    "strangers' pushes": lambda: pack(Envelope(1, m.Push(seq=1, base=0, digest="x"), (bytes(32), b""))),
    "altered payloads": lambda: [
        *pack(Envelope(1, m.Push(seq=1, base=0, digest="x"), (bytes(10_000),)))[:2],
        b"1" * 10_000,
    ],
}


class Flood:
    """A stranger that sends as fast as the socket takes it and never reads."""

    def __init__(self, address: str, frames: list[Frame]) -> None:
        self._address, self._frames = address, frames
        self._stop = threading.Event()
        self.sent = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as line:
            line.setsockopt(zmq.LINGER, 0)
            line.connect(self._address)
            while not self._stop.is_set():
                if line.poll(50, zmq.POLLOUT):
                    line.send_multipart(self._frames)
                    self.sent += 1

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(ENOUGH_S)


class Turns:
    """Whose messages the server takes, in order, and the seconds that its thread computes for each."""

    def __init__(self, server: ServerThread, good: Client) -> None:
        member = server.coordinator.run.members.named(good.name)
        assert member is not None
        self._good, self._service = member.peer, server._service
        self._take = self._service._take
        self.is_good: list[bool] = []
        self.computed_s: list[float] = []
        self._service._take = self.take  # type: ignore[method-assign]

    def take(self, peer: bytes, frames: Sequence[memoryview]) -> None:
        began = time.thread_time()
        self._take(peer, frames)
        self.computed_s.append(time.thread_time() - began)
        self.is_good.append(peer == self._good)

    def between(self) -> list[int]:
        """How many messages of strangers came between each two of the good client's; forgets what it has seen."""
        places = [place for place, is_good in enumerate(self.is_good) if is_good]
        self.is_good = []
        return [b - a - 1 for a, b in itertools.pairwise(places)]


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_does_not_slow_a_good_client_much(
    server: ServerThread, good: Client, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted, not measured: the good client's messages have their turn, and a stranger's costs little."""
    caplog.set_level(logging.CRITICAL)
    turns = Turns(server, good)
    with Flood(server.address, FLOODS[kind]()) as flood:
        eventually(lambda: len(turns.is_good) > 100, what="the flood")
        turns.between()
        for _ in range(20):
            good.burst(32)
        between = turns.between()
        assert flood.sent > 100
    print(kind, statistics.median(between), statistics.median(turns.computed_s))
    assert any(between), "the flood was over"
    assert statistics.median(between) <= 3, "messages of strangers for each of the good client's"
    assert statistics.median(turns.computed_s) < 0.01, "seconds for a stranger's message; usual are 50 us"
    eventually(lambda: good.burst(32) or not any(turns.between()), what="the end of what the flood has left")
    assert good.push().accepted  # type: ignore[union-attr]


def test_a_bug_in_a_handler_concerns_one_request(
    server: ServerThread, good: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sharing.report, "state", lambda *_: 1 / 0)
    answer = good.ask(m.Status())
    assert isinstance(answer, m.Refused)
    assert answer.reason == Reason.INTERNAL.value
    assert "ZeroDivisionError" in caplog.text
    assert good.push().accepted  # type: ignore[union-attr]


def test_a_bug_in_a_tick_stops_nothing_and_does_not_fill_the_log(
    server: ServerThread, good: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bugs = [RuntimeError("a bug") for _ in range(9)]
    answer_pulls = publishing.answer_pulls

    def broken(run: Run) -> None:
        if bugs:
            raise bugs.pop()
        answer_pulls(run)

    monkeypatch.setattr(publishing, "answer_pulls", broken)
    eventually(lambda: not bugs)
    assert good.push().accepted  # type: ignore[union-attr]
    assert caplog.text.count("RuntimeError: a bug") == 4, "after the 1st, 2nd, 4th and 8th"


def test_closing_frees_the_port_and_tells_the_workers() -> None:
    server = ServerThread(RunConfig())
    client = Client(server.address)
    try:
        client.join()
        client.line.send(pack(Envelope(77, m.Pull(have=0, wait_s=20.0))))
        client.line.send(pack(Envelope(78, m.Leave())))
        server.close()
        assert free(server.address)
        server.close()
    finally:
        client.line.close()
        server.close()


class FullDisk:
    """A sink whose disk is full from the third event on."""

    def __init__(self) -> None:
        self.asked = 0

    def write(self, event: object) -> None:
        self.asked += 1
        if self.asked > 2:
            raise OSError(28, "No space left on device")

    def close(self) -> None: ...


def test_a_sink_that_cannot_write_is_dropped_and_costs_no_receipt(caplog: pytest.LogCaptureFixture) -> None:
    sink = FullDisk()
    with ServerThread(RunConfig(), sinks=[sink]) as server:
        client = Client(server.address)
        try:
            client.join()
            assert [client.push().accepted for _ in range(3)] == [True, True, True]
            client.ask(m.Leave())
        finally:
            client.line.close()
    assert sink.asked == 3
    assert "FullDisk takes no more events" in caplog.text
