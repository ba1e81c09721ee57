"""A server with keys: who comes in, who does not, and what somebody on the line can do. Real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq
from eventually import ENOUGH_S, eventually
from keyring import Keyring
from lines import Line
from zmq.utils.monitor import recv_monitor_message

from lightning_async.errors import ConfigError, RefusedError
from lightning_async.transport import zeromq
from lightning_async.transport.keys import Key
from lightning_async.transport.zeromq_curve import new_pair, secure_client

LOOPBACK = "tcp://127.0.0.1:0"


@pytest.fixture
def listener(ring: Keyring) -> Iterator[zeromq.ZeroMQListener]:
    with contextlib.closing(zeromq.listen(LOOPBACK, keys=ring.folder)) as opened:
        yield opened


Dial = Callable[..., zeromq.ZeroMQConnection]


@pytest.fixture
def dial(listener: zeromq.ZeroMQListener) -> Iterator[Dial]:
    with contextlib.ExitStack() as stack:
        yield lambda key=None, url=None: stack.enter_context(
            contextlib.closing(zeromq.connect(url or listener.address, key=key))
        )


def passes(listener: zeromq.ZeroMQListener, connection: zeromq.ZeroMQConnection, text: bytes = b"hello") -> bytes:
    """The peer from which `text` came; its answer has come back."""
    connection.send([b"", text])
    while True:
        arrived = listener.receive(ENOUGH_S)
        assert arrived is not None
        if bytes(arrived[1][1]) == text:
            break
    assert listener.send(arrived[0], [b"", b"re: " + text])
    answer = connection.receive(ENOUGH_S)
    assert answer is not None
    assert bytes(answer[1]) == b"re: " + text
    return arrived[0]


def wait_for_nothing(*ends: zeromq.ZeroMQConnection | zeromq.ZeroMQListener) -> None:
    """Until one of them raises; none of them gets anything."""
    deadline = time.monotonic() + ENOUGH_S
    while time.monotonic() < deadline:
        for end in ends:
            assert end.receive(0.05) is None


def refused(listener: zeromq.ZeroMQListener, connection: zeromq.ZeroMQConnection) -> str:
    """Why `connection`, which speaks, is not let in; nothing of what it says arrives."""
    connection.send([b"", b"let me in"])
    with pytest.raises(RefusedError) as caught:
        wait_for_nothing(connection, listener)
    assert caught.value.reason == "key"
    return str(caught.value)


def test_a_key_of_the_list_comes_in_and_is_known(ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial) -> None:
    assert listener.door is not None
    for name, role in (("alice", "worker"), ("bob", "observer")):
        caller = listener.door.caller(passes(listener, dial(ring.key(name, role))))
        assert (caller.name, caller.role) == (name, role)


def test_an_unknown_key_does_not(ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial) -> None:
    assert "not on the server's list" in refused(listener, dial(ring.stranger()))
    assert listener.door is not None
    assert listener.door.counts["unknown key"] >= 1
    passes(listener, dial(ring.key("alice")))


def test_a_revoked_key_does_not(ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial) -> None:
    key = ring.key("alice")
    passes(listener, dial(key))
    ring.revoke("alice")
    assert "revoked" in refused(listener, dial(key))
    assert listener.door is not None
    assert listener.door.counts["revoked key"] >= 1


def test_without_a_key_nobody_comes_in(ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial) -> None:
    assert "lightning-async join" in refused(listener, dial())
    passes(listener, dial(ring.key("alice")))


def test_a_worker_with_a_key_does_not_speak_with_a_server_without(ring: Keyring, dial: Dial) -> None:
    with contextlib.closing(zeromq.listen(LOOPBACK)) as plain:
        assert "does not go on without encryption" in refused(plain, dial(ring.key("alice"), plain.address))


def test_another_server_is_not_taken_for_the_one_that_is_meant(
    ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial
) -> None:
    """A server that an enemy runs lets everybody in, and gets nothing out of it."""
    connection = dial(ring.stranger(new_pair()))
    connection.send([b"", b"the crown jewels"])
    eventually(lambda: connection.receive(0.05) or connection.trouble)
    assert "with another key than the one that we know" in connection.trouble
    assert listener.receive(0.0) is None


def test_when_the_doorkeeper_is_dead_nobody_comes_in(
    ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial
) -> None:
    """ZeroMQ by itself would let everybody in then."""
    assert listener._keeper is not None
    listener._keeper.close()
    listener._keeper = None
    connection = dial(ring.key("alice"))
    connection.send([b"", b"hello"])
    assert connection.receive(1.0) is None
    assert listener.receive(0.0) is None


def test_when_the_doorkeeper_is_dead_not_even_a_handshake_succeeds(
    ring: Keyring, listener: zeromq.ZeroMQListener
) -> None:
    """The first of two locks: that a message without a proven key is dropped is the second one."""
    assert listener._keeper is not None
    listener._keeper.close()
    listener._keeper = None
    key, hung_up = ring.key("alice"), 0
    with zmq.Context() as context, context.socket(zmq.DEALER) as line:
        line.linger, line.reconnect_ivl = 0, 10
        secure_client(line, key)
        monitor = line.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        try:
            line.connect(listener.address)
            line.send_multipart([b"", b"hello"])
            while hung_up < 3:
                assert monitor.poll(int(1000 * ENOUGH_S))
                assert recv_monitor_message(monitor)["event"] == zmq.EVENT_DISCONNECTED
                hung_up += 1
        finally:
            line.disable_monitor()
            monitor.close(0)
    assert listener._end.receive(0.0) is None, "nor has anything come to where it would be dropped"


def test_a_judge_that_breaks_lets_nobody_in_and_is_asked_again(
    ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ring.key("alice")
    with monkeypatch.context() as broken:
        broken.setattr(type(listener.door), "knock", lambda door, key, host: 1 / 0)
        refused(listener, dial(key))
    passes(listener, dial(key))


def test_names_are_those_of_keys_whatever_a_client_calls_itself(
    ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial
) -> None:
    """A client may choose its ZeroMQ routing id; it has no weight here."""
    alice, eve = ring.key("alice"), ring.key("eve")
    honest = passes(listener, dial(alice))
    with zmq.Context() as context, context.socket(zmq.DEALER) as line:
        line.linger = 0
        line.setsockopt(zmq.ROUTING_ID, b"alice")
        line.curve_serverkey = ring.server.public
        line.curve_publickey, line.curve_secretkey = eve.pair.public, eve.pair.secret
        line.connect(listener.address)
        line.send_multipart([b"", b"I am alice"])
        arrived = listener.receive(ENOUGH_S)
    assert arrived is not None
    assert listener.door is not None
    assert listener.door.caller(arrived[0]).name == "eve"
    assert arrived[0] != honest


def test_nothing_that_is_said_can_be_read_on_the_line(
    ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial
) -> None:
    with Line(listener.address) as line:
        passes(listener, dial(ring.key("alice"), line.url), b"a secret of fifty bytes " * 20)
        heard = b"".join(bytes(part) for part in line.heard)
    assert len(heard) > 500
    assert b"a secret" not in heard
    assert b"CURVE" in heard


def test_what_was_heard_on_the_line_is_worth_nothing_when_it_is_said_again(
    ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial
) -> None:
    with Line(listener.address) as line:
        passes(listener, dial(ring.key("alice"), line.url))
        said = bytes(line.said)
    place = listener.address.removeprefix("tcp://").split(":")
    with socket.create_connection((place[0], int(place[1])), timeout=ENOUGH_S) as again:
        again.sendall(said)
        while again.recv(65_536):
            pass  # its greeting, its welcome, and the end
    assert listener.receive(0.2) is None


@pytest.mark.parametrize("at", [0, 20, 40, 100, -1])
def test_a_bit_that_turns_on_the_line_ends_the_connection_and_the_next_one_works(
    ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial, at: int
) -> None:
    """At an offset of the ciphertext of one large message, behind its head of nine bytes."""
    with Line(listener.address) as line:
        connection = dial(ring.key("alice"), line.url)
        passes(listener, connection)
        before = line.connections
        line.flip_after(0, at)
        connection.send([b"", bytes(1000)])
        eventually(lambda: line.connections > before or listener.receive(0.01))
        assert line.connections > before, "the altered message did not arrive"
        assert listener.receive(0.0) is None
        eventually(lambda: _heard(listener, connection))


def test_a_bit_that_turns_on_the_way_down_ends_the_connection_too(
    ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial
) -> None:
    with Line(listener.address) as line:
        connection = dial(ring.key("alice"), line.url)
        peer = passes(listener, connection)
        before = line.connections
        line.flip_after(0, 40, down=True)
        assert listener.send(peer, [b"", bytes(1000)])
        eventually(lambda: connection.receive(0.05) or line.connections > before)
        assert line.connections > before
        eventually(lambda: _heard(listener, connection))


def _heard(listener: zeromq.ZeroMQListener, connection: zeromq.ZeroMQConnection) -> bool:
    connection.send([b"", b"again"])
    connection.receive(0.01)
    return listener.receive(0.2) is not None


def test_a_downgrade_on_the_line_is_refused(ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial) -> None:
    """Somebody on the line says to both sides that the other wants no encryption."""
    with Line(listener.address, replace=(b"CURVE", b"NULL\0")) as line:
        connection = dial(ring.key("alice"), line.url)
        connection.send([b"", b"hello"])
        with pytest.raises(RefusedError, match="does not go on without encryption"):
            wait_for_nothing(connection, listener)
    assert listener.receive(0.0) is None


@pytest.mark.parametrize("url", ["tcp://*:0", "tcp://0.0.0.0:0", "tcp://[::]:0", "tcp://192.0.2.1:0"])
def test_beyond_this_machine_a_server_wants_keys_and_says_how(url: str) -> None:
    with pytest.raises(ConfigError, match=r"lightning-async keys server.*lightning-async invite"):
        zeromq.listen(url)


def test_beyond_this_machine_with_keys(ring: Keyring) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(zeromq.listen("tcp://*:0", keys=ring.folder)))
        url = f"tcp://127.0.0.1:{listener.address.rpartition(':')[2]}"
        connection = stack.enter_context(contextlib.closing(zeromq.connect(url, key=ring.key("alice"))))
        passes(listener, connection)


def test_handshakes_do_not_wait_for_the_server(ring: Keyring, listener: zeromq.ZeroMQListener, dial: Dial) -> None:
    """It may be in a step that takes minutes."""
    key: Key = ring.stranger()
    connection = dial(key)
    with pytest.raises(RefusedError):
        wait_for_nothing(connection)  # nobody calls listener.receive


def test_a_server_without_keys_has_no_doorkeeper() -> None:
    with contextlib.closing(zeromq.listen(LOOPBACK)) as plain:
        assert plain.door is None
        assert not [thread for thread in threading.enumerate() if thread.name == "lightning-async-door"]
