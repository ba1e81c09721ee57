"""What one peer can take of a server with keys: connections, memory, time, answers; an honest one is served."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Iterator

import pytest
import zmq
from eventually import ENOUGH_S, eventually
from keyring import Keyring

from lightning_async.transport import conduct, invitations, zeromq, zeromq_connections, zeromq_endpoint
from lightning_async.transport.allowed import STRANGER, Caller
from lightning_async.transport.door import place
from lightning_async.transport.keys import Key

LOOPBACK = "tcp://127.0.0.1:0"
LARGEST = 1_000_000


@pytest.fixture
def honest(ring: Keyring) -> Iterator[Honest]:
    with Honest(ring) as opened:
        yield opened


class Honest:
    """A server's listener, and a worker that asks and is answered as long as it lives; `peers` are all it has heard."""

    def __init__(self, ring: Keyring) -> None:
        self.listener = zeromq.listen(LOOPBACK, keys=ring.folder)
        self.listener.limit(LARGEST)
        self.connection = zeromq.connect(self.listener.address, key=ring.key("honest"))
        self.door = self.listener.door
        assert self.door is not None
        self.place = ("127.0.0.1", int(self.listener.address.rpartition(":")[2]))
        self.longest = 0
        self.is_served()

    def __enter__(self) -> Honest:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self.listener.close()

    def count(self, why: str) -> int:
        assert self.door is not None
        return self.door.counts[why]

    def is_served(self) -> None:
        """One question is answered, whatever others send meanwhile."""
        assert self.door is not None
        self.connection.send([b"", b"question"])
        while True:
            arrived = self.listener.receive(ENOUGH_S)
            assert arrived is not None
            peer, frames = arrived
            self.longest = max(self.longest, sum(map(len, frames)))
            if self.door.caller(peer).name == "honest":
                break
            self.door.hears(peer)
        assert self.listener.send(peer, [b"", b"answer"])
        assert self.connection.receive(ENOUGH_S) is not None


@contextlib.contextmanager
def raw(address: str, key: Key, host: str = "127.0.0.1") -> Iterator[zmq.Socket[bytes]]:
    """A client that keeps to no rules of ours, and comes from `host`."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as line:
        line.linger = 0
        line.sndhwm = 0
        line.curve_serverkey = key.server
        line.curve_publickey, line.curve_secretkey = key.pair.public, key.pair.secret
        line.connect(address.replace("tcp://", f"tcp://{host}:0;"))
        yield line


def test_a_message_of_endless_frames_is_cut_before_it_is_whole(honest: Honest, ring: Keyring) -> None:
    """ZeroMQ would keep its frames until the memory is full: none of its limits counts them."""
    with raw(honest.listener.address, ring.key("eve")) as line:
        line.send_multipart([bytes(LARGEST // 2)] * 500, copy=False)
        eventually(lambda: honest.count("too much under way"))
        honest.is_served()
    assert honest.longest < LARGEST


def test_a_worker_with_its_largest_messages_is_not_cut(honest: Honest, ring: Keyring) -> None:
    """However long the server does not read, and however much it has said in its life."""
    with contextlib.closing(zeromq.connect(honest.listener.address, key=ring.key("busy"))) as busy:
        for _ in range(20):
            for _ in range(3):
                busy.send([b"", bytes(LARGEST)])
            time.sleep(2 * zeromq_connections.LOOK_S / 20)  # the doorkeeper looks now and then while nobody reads
            for _ in range(3):
                assert honest.listener.receive(ENOUGH_S) is not None
        small = 5000
        for _ in range(small):
            busy.send([b"", b"x"])
            assert honest.listener.receive(ENOUGH_S) is not None
    assert honest.count("too much under way") == 0


def test_the_bytes_of_a_connection_are_counted_as_the_system_counts_them(honest: Honest, ring: Keyring) -> None:
    """Else small differences would add up until an honest worker is cut."""
    connections = honest.listener._connections
    assert connections is not None
    with contextlib.closing(zeromq.connect(honest.listener.address, key=ring.key("busy"))) as busy:
        for frames in ([b"", b"x" * 64], [b"", b"y" * 190], [b"", b"z" * 250], [b"", bytes(70_000), b""]):
            for _ in range(300):
                busy.send(frames)
                assert honest.listener.receive(ENOUGH_S) is not None
        found = [(fd, one) for fd, one in list(connections._open.items()) if one.read_bytes > 1_000_000]
        assert len(found) == 1
        received = zeromq_connections._received_bytes(*found[0])
        assert 0 < received - found[0][1].read_bytes < 2000, "the handshake, and nothing that grows"


def test_a_message_of_many_frames_counts_as_one(honest: Honest, ring: Keyring) -> None:
    with raw(honest.listener.address, ring.key("eve")) as line:
        line.send_multipart([b"", *[bytes(LARGEST // 2)] * 5])
        line.send_multipart([b"", b"small"])
        assert (honest.listener.receive(ENOUGH_S) or (b"", [b""]))[1] == [b"", b"small"]
    assert honest.count("too large") == 1
    honest.is_served()


def test_connections_from_one_address_are_bounded(ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    """600 of them, well below what this process may open; each that is too many is closed at once."""
    monkeypatch.setattr(zeromq_endpoint, "HANDSHAKE_S", 600.0)  # which is not what ends them here
    most = zeromq_connections.MOST_FROM_ONE_ADDRESS
    with Honest(ring) as honest, contextlib.ExitStack() as stack:
        many = [stack.enter_context(socket.create_connection(honest.place, timeout=ENOUGH_S)) for _ in range(600)]
        eventually(lambda: honest.count("too many connections") >= 600 - most)
        honest.is_served()
        assert honest.listener._connections is not None
        eventually(lambda: len(honest.listener._connections._open) <= most)
        for line in many:
            line.close()
        honest.is_served()
        eventually(lambda: len(honest.listener._connections._open) == 1)


def test_strangers_who_say_nothing_or_everything_slowly_are_dropped(
    ring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow-loris: a greeting byte by byte."""
    monkeypatch.setattr(zeromq_endpoint, "HANDSHAKE_S", 0.5)
    with Honest(ring) as honest, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(honest.place, timeout=ENOUGH_S)) for _ in range(50)]
        began, ended = time.monotonic(), [False] * len(slow)
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(40)  # a few bytes are always still to come
        for byte in itertools.chain(greeting, itertools.repeat(None)):
            ended = [done or _ended(line, byte) for line, done in zip(slow, ended, strict=True)]
            if all(ended):
                break
            assert time.monotonic() - began < ENOUGH_S
            honest.is_served()
            time.sleep(0.01)
        assert all(ended)
        eventually(lambda: honest.count("came and went without a word") >= 50)


def _ended(line: socket.socket, byte: int | None) -> bool:
    """Say one byte more, if there is one; whether the other side has hung up."""
    try:
        if byte is not None:
            line.sendall(bytes([byte]))
        line.setblocking(False)
        return line.recv(1000) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        line.setblocking(True)


def test_who_does_not_read_its_answers_is_not_waited_for(honest: Honest, ring: Keyring) -> None:
    """However many whole models it asks for, a few are kept for it."""
    honest.listener.limit(8 * LARGEST)
    with raw(honest.listener.address, ring.key("deaf")) as line:
        line.rcvhwm = 1
        line.send_multipart([b"", b"x"])
        peer = (honest.listener.receive(ENOUGH_S) or (b"", []))[0]
        taken = sum(honest.listener.send(peer, [b"", bytes(8 * LARGEST)]) for _ in range(60))
        assert 0 < taken <= 20, "ZeroMQ by itself would keep 64"
        honest.is_served()
    eventually(lambda: honest.is_served() or not honest.listener._outgoing.bytes_to(peer))


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "BURST", 50.0)
    monkeypatch.setattr(conduct, "MESSAGES_S", 1.0)
    monkeypatch.setattr(conduct, "MOST_FORGIVEN", 10.0)
    monkeypatch.setattr(conduct, "FORGIVEN_S", 0.001)
    monkeypatch.setattr(conduct, "BAN_S", 3600.0)


@pytest.mark.usefixtures("strict")
def test_who_shouts_is_put_out_and_stays_out(honest: Honest, ring: Keyring) -> None:
    eve = ring.key("eve")
    assert honest.door is not None
    with raw(honest.listener.address, eve) as line:
        for _ in range(100):
            line.send_multipart([b"", b"x"])
        heard = 0
        while not honest.count("put out"):  # it is cut, dials again, and is turned away
            arrived = honest.listener.receive(0.1)
            heard += arrived is not None and honest.door.hears(arrived[0])
            with contextlib.suppress(zmq.Again):
                line.send_multipart([b"", b"x"], zmq.NOBLOCK)
    assert heard < 50 + ENOUGH_S
    assert honest.count("too fast") == 11
    honest.is_served()


def test_who_was_put_out_comes_in_again_later(honest: Honest, ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    eve, now = ring.key("eve"), [1000.0]
    assert honest.door is not None
    monkeypatch.setattr(honest.door, "_clock", lambda: now[0])
    honest.door.refresh()
    peer = b"12345" + place("10.0.0.1") + eve.pair.public
    for _ in range(int(conduct.MOST_FORGIVEN) + 1):
        honest.door.blame(peer, "no message")
    assert not honest.door.knock(eve.pair.public)
    now[0] += conduct.BAN_S
    assert honest.door.knock(eve.pair.public)
    assert honest.door.hears(peer)


def test_made_up_keys_of_one_address_share_one_record(honest: Honest, ring: Keyring) -> None:
    assert honest.door is not None
    for _ in range(50):
        honest.door.hears(b"12345" + place("10.0.0.1") + ring.stranger().pair.public)
    assert len(honest.door._strangers) == 1


@pytest.mark.usefixtures("strict")
def test_a_hostile_stranger_does_not_use_up_what_the_invited_one_needs(ring: Keyring) -> None:
    """While an invitation is open: over real lines, from two addresses of this machine."""
    token = invitations.invite(ring.folder, Caller("", "worker"), 3600.0, time.time())
    with Honest(ring) as honest, raw(honest.listener.address, ring.stranger(), "127.0.0.2") as line:
        assert honest.door is not None
        for _ in range(100):
            line.send_multipart([b"", b"x"])
        while not honest.count("put out"):
            arrived = honest.listener.receive(0.1)
            if arrived is not None:
                assert not honest.door.hears(arrived[0]) or honest.door.caller(arrived[0]) is STRANGER
            with contextlib.suppress(zmq.Again):
                line.send_multipart([b"", b"x"], zmq.NOBLOCK)
        key = ring.stranger()
        with contextlib.closing(zeromq.connect(honest.listener.address, key=key)) as invited:
            invited.send([b"", b"the invitation"])
            said = (b"", [b"", b""])
            while said[1][1] != b"the invitation":
                said = honest.listener.receive(ENOUGH_S) or said
            assert honest.door.hears(said[0]), "the other one is out, this one is not"
            assert honest.door.enrol(said[0], token, "invited").name == "invited"


def test_an_address_is_a_host_and_of_ipv6_a_network() -> None:
    assert place("10.0.0.1") != place("10.0.0.2")
    assert place("::ffff:10.0.0.1") == place("10.0.0.1"), "the same host at a socket that takes both"
    assert place("2001:db8::1") == place("2001:db8::ffff:2") != place("2001:db8:0:1::1")
    assert place("fe80::1%eth0") == place("fe80::2")
    assert len({len(place(host)) for host in ("10.0.0.1", "::1", "", "nonsense")}) == 1
