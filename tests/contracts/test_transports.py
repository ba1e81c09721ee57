"""What every transport promises (transport/base.py), held against each one of the table."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest
from eventually import ENOUGH_S, eventually
from peak import peak_memory
from wires import COPIES, START

from lightning_async.errors import CallerError, ConfigError, NetworkError
from lightning_async.transport import TRANSPORTS, connect, listen

WAIT_S = ENOUGH_S
SOON_S = 0.05
NEVER_S = 1e4  # a wait that something ends; pytest ends one that nothing does


def test_every_transport_is_held_to_this():
    assert set(START) == set(TRANSPORTS)


def test_requests_and_replies_in_order(ends):
    listener = ends.listen()
    connection = ends.connect(listener.address)
    for number in range(300):
        connection.send([b"", b"%d" % number, bytes(number)])
        peer, frames = listener.receive(WAIT_S)
        assert [bytes(frame) for frame in frames] == [b"", b"%d" % number, bytes(number)]
        assert listener.send(peer, [b"", b"reply %d" % number])
        assert [bytes(frame) for frame in connection.receive(WAIT_S)] == [b"", b"reply %d" % number]


def test_a_burst_arrives_in_order(ends):
    listener = ends.listen(queue=64)
    connection = ends.connect(listener.address, queue=64)
    for number in range(50):
        connection.send([b"%d" % number])
    assert [int(bytes(listener.receive(WAIT_S)[1][0])) for _ in range(50)] == list(range(50))


@pytest.mark.parametrize("up", [True, False])
def test_a_large_message_arrives_whole_and_is_not_copied_in_python(ends, up):
    listener = ends.listen()
    connection = ends.connect(listener.address)
    vector = np.random.default_rng(0).standard_normal(1_000_000 if ends.scheme in COPIES else 8_000_000)
    connection.send([b"hello"])
    peer, _ = listener.receive(WAIT_S)
    most = vector.nbytes / 10 if ends.scheme not in COPIES else 12 * vector.nbytes
    with peak_memory() as peak_bytes:
        if up:
            connection.send([b"", memoryview(vector)])
            frames = listener.receive(WAIT_S)[1]
        else:
            assert listener.send(peer, [b"", memoryview(vector)])
            frames = connection.receive(WAIT_S)
        assert peak_bytes() < most
    assert isinstance(frames[1], memoryview)
    assert np.array_equal(np.frombuffer(frames[1]), vector)


def test_frames_of_every_kind(ends):
    listener = ends.listen()
    connection = ends.connect(listener.address)
    floats = np.arange(3, dtype=np.float32)
    connection.send([b"a", bytearray(b"b"), memoryview(b"c"), memoryview(floats), memoryview(floats[:0])])
    _, frames = listener.receive(WAIT_S)
    assert [bytes(frame) for frame in frames] == [b"a", b"b", b"c", floats.tobytes(), b""]
    assert all(frame.format == "B" for frame in frames)


def test_many_connections_each_get_their_own_answer(ends):
    listener = ends.listen()
    connections = [ends.connect(listener.address) for _ in range(60)]
    for number, connection in enumerate(connections):
        connection.send([b"%d" % number])
    peers = dict(_received(listener) for _ in connections)
    assert len(peers) == len(connections)
    for peer, frame in peers.items():
        assert listener.send(peer, [b"you are " + frame])
    for number, connection in enumerate(connections):
        assert bytes(connection.receive(WAIT_S)[0]) == b"you are %d" % number


def test_a_peer_keeps_its_key(ends):
    listener = ends.listen()
    connection = ends.connect(listener.address)
    connection.send([b"1"])
    connection.send([b"2"])
    assert len({listener.receive(WAIT_S)[0] for _ in range(2)}) == 1


def test_dialling_before_anybody_listens(ends):
    first = ends.listen()
    address = first.address
    first.close()
    connection = ends.connect(address)
    connection.send([b"early"])
    assert connection.receive(SOON_S) is None
    assert _received(ends.listen(address))[1] == b"early"


def test_a_connection_finds_the_server_again(ends):
    first = ends.listen()
    connection = ends.connect(first.address)
    connection.send([b"before"])
    old, _ = first.receive(WAIT_S)
    first.close()
    second = ends.listen(first.address)

    def heard():
        with contextlib.suppress(NetworkError):  # its queue is full: it has been said often enough
            connection.send([b"after"])
        return second.receive(0.2)

    peer, frames = eventually(heard)
    assert bytes(frames[0]) == b"after"
    assert peer != old or ends.scheme == "tcp"
    assert second.send(peer, [b"welcome back"])
    assert bytes(connection.receive(WAIT_S)[0]) == b"welcome back"


def test_closing_frees_the_address(ends):
    listener = ends.listen()
    with pytest.raises(ConfigError):
        ends.listen(listener.address)
    listener.close()
    ends.listen(listener.address)


def test_a_vanished_peer_gives_false(ends):
    listener = ends.listen()
    connection = ends.connect(listener.address)
    connection.send([b"hello"])
    peer, _ = listener.receive(WAIT_S)
    assert not listener.send(b"nobody", [b"x"])
    connection.close()
    eventually(lambda: not listener.send(peer, [b"x"]) or listener.receive(0.01))
    assert not listener.send(peer, [b"x"])


def test_nobody_waits_longer_than_asked(ends):
    """The shortest of a few waits: the machine may stand still in any of them, not in all."""
    listener = ends.listen()
    connection = ends.connect(listener.address)
    for end in (listener, connection):
        for timeout_s in (0.0, -1.0, 0.002, SOON_S):
            waited_s = [_seconds_without_a_message(end, timeout_s) for _ in range(5)]
            assert min(waited_s) >= timeout_s - 1e-3
            assert min(waited_s) < timeout_s + 1.5


def _seconds_without_a_message(end, timeout_s):
    started = time.monotonic()
    assert end.receive(timeout_s) is None
    return time.monotonic() - started


def test_wake_ends_a_wait(ends):
    listener = ends.listen()
    connection = ends.connect(listener.address)
    for end in (listener, connection):
        waiting, woken = threading.Event(), []

        def wait(end=end, waiting=waiting, woken=woken):
            waiting.set()
            woken.append(end.receive(NEVER_S))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        waiting.wait()
        end.wake()
        thread.join()
        assert woken == [None]


def test_a_wake_before_the_wait_counts_once(ends):
    listener = ends.listen()
    connection = ends.connect(listener.address)
    for end in (listener, connection):
        for _ in range(10_000):
            end.wake()
        assert end.receive(NEVER_S) is None
        assert _seconds_without_a_message(end, SOON_S) > SOON_S * 0.9


def test_a_message_comes_before_a_wake(ends):
    listener = ends.listen()
    connection = ends.connect(listener.address)
    connection.send([b"x"])
    listener.wake()
    assert listener.receive(WAIT_S) or listener.receive(WAIT_S), "a wake may end one wait"


def test_a_connection_whose_server_does_not_read_says_so(ends):
    listener = ends.listen()
    connection = ends.connect(listener.address)
    block = bytes(2**20)
    with pytest.raises(NetworkError, match="does not read"):
        _flood(connection, block)
    assert connection.traffic().sent_bytes < 200 * len(block)


def test_a_peer_that_does_not_read_is_refused_and_the_others_are_served(ends):
    listener = ends.listen()
    deaf, other = ends.connect(listener.address), ends.connect(listener.address)
    deaf.send([b"deaf"])
    deaf_peer, _ = listener.receive(WAIT_S)
    other.send([b"other"])
    other_peer, _ = listener.receive(WAIT_S)
    block = bytes(2**20)
    assert sum(listener.send(deaf_peer, [block]) for _ in range(500)) < 200
    assert listener.send(other_peer, [b"answer"])
    assert bytes(other.receive(WAIT_S)[0]) == b"answer"


def test_a_flood_waits_at_its_source_and_others_have_their_turn(ends):
    """One of a few floods is enough: the machine may stand still between another one's message and its arrival."""
    listener = ends.listen()
    flooder, other = ends.connect(listener.address), ends.connect(listener.address)
    other.send([b"other"])
    assert _received(listener)[1] == b"other"
    assert any(_is_served_during_a_flood(listener, flooder, other) for _ in range(5))


def _is_served_during_a_flood(listener, flooder, other):
    block, before = bytes(2**20), flooder.traffic().sent_bytes
    for _ in range(4):
        other.send([b"other"])
    for _ in range(50):
        with contextlib.suppress(NetworkError):
            _flood(flooder, block)
        assert flooder.receive(0.01) is None  # time to deliver, if anybody took it
    assert flooder.traffic().sent_bytes - before < 200 * len(block)
    heard = []
    while heard.count(b"other") < 4:
        heard.append(_received(listener)[1])
    while (arrived := listener.receive(SOON_S)) is not None:
        heard.append(bytes(arrived[1][0]))
    return heard[-1] == block


def test_larger_messages_are_refused_while_others_go_on(ends):
    listener = ends.listen()
    listener.limit(10_000)
    large, other = ends.connect(listener.address), ends.connect(listener.address)
    large.send([bytes(10_001)])
    other.send([b"", bytes(10_000)])
    assert [len(frame) for frame in listener.receive(WAIT_S)[1]] == [0, 10_000]
    assert listener.receive(SOON_S) is None


def test_a_limit_holds_for_those_who_are_there_already(ends):
    listener = ends.listen()
    connection = ends.connect(listener.address)
    connection.send([b"hello"])
    peer, _ = listener.receive(WAIT_S)
    listener.limit(10_000)
    connection.send([bytes(10_001)])
    connection.send([b"small"])
    assert listener.receive(WAIT_S) == (peer, [b"small"])


def test_bytes_are_counted_in_both_directions(ends):
    listener = ends.listen()
    connection = ends.connect(listener.address)
    connection.send([b"", bytes(100), bytes(1000)])
    peer, _ = listener.receive(WAIT_S)
    listener.send(peer, [b"", bytes(300)])
    connection.receive(WAIT_S)
    ours = connection.traffic()
    if ends.scheme in COPIES:  # base64, XML, HTTP, and the polls that ask for answers
        assert 1.3 * 1100 <= ours.sent_bytes <= 1.4 * 1100 + 3000
        assert 1.3 * 300 <= ours.received_bytes <= 1.4 * 300 + 3000
        return
    assert 1100 <= ours.sent_bytes <= 1100 + 3 * 9
    assert 300 <= ours.received_bytes <= 300 + 2 * 9


def test_closing_twice_and_using_what_is_closed(ends):
    listener = ends.listen()
    connection = ends.connect(listener.address)
    for end in (connection, listener):
        end.close()
        end.close()
        end.wake()
        with pytest.raises(CallerError, match="closed"):
            end.receive(0.0)
    with pytest.raises(CallerError, match="closed"):
        connection.send([b"x"])
    with pytest.raises(CallerError, match="closed"):
        listener.send(b"x", [b"x"])


def test_an_address_nobody_knows():
    for url in ("carrier-pigeon://x", "127.0.0.1:5555", ""):
        with pytest.raises(ConfigError, match="tcp://, http"):
            connect(url)
        with pytest.raises(ConfigError, match="tcp://, http"):
            listen(url)


def _received(listener):
    peer, frames = listener.receive(WAIT_S)
    return peer, bytes(frames[0])


def _flood(connection, frame):
    for _ in range(100_000):
        connection.send([frame])
