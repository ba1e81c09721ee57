"""The scripted bad network: each fault happens when it should, repeats with its seed, and is counted."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter

import pytest

from lightning_async.errors import ConfigError
from lightning_async.transport import memory
from lightning_async.transport.faults import Script, connection_with, listener_with
from lightning_async.wire.frames import Envelope, FrameError, pack, unpack
from lightning_async.wire.messages import Push


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def pair():
    """A connection on the scripted network, and its listener."""
    with contextlib.ExitStack() as stack:

        def made(script, clock=time.monotonic):
            listener = stack.enter_context(contextlib.closing(memory.listen(queue=2000)))
            inner = stack.enter_context(contextlib.closing(memory.connect(listener.address, queue=2000)))
            return connection_with(script, inner, clock), listener

        yield made


def heard(listener):
    numbers = []
    while (arrived := listener.receive(0.0)) is not None:
        numbers.append(int(bytes(arrived[1][0])))
    return numbers


def send_all(connection, count):
    for number in range(1, count + 1):
        connection.send([b"%d" % number])


def test_an_empty_script_changes_nothing(pair):
    connection, listener = pair(Script())
    send_all(connection, 100)
    assert heard(listener) == list(range(1, 101))
    assert connection.fired == Counter()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (Script().drop(at=[2]), [1, 3, 4]),
        (Script().duplicate(at=[2]), [1, 2, 2, 3, 4]),
        (Script().reorder(at=[2]), [1, 3, 2, 4]),
        (Script().cut_after(2), [1, 2]),
        (Script().drop(at=[1, 4]).duplicate(at=[2]), [2, 2, 3]),
        (Script().drop(at=[2], way="receive"), [1, 2, 3, 4]),
    ],
)
def test_faults_by_number(pair, script, expected):
    connection, listener = pair(script)
    send_all(connection, 4)
    assert heard(listener) == expected


@pytest.mark.parametrize("kind", ["drop", "duplicate", "reorder"])
def test_faults_by_chance_repeat_with_their_seed(pair, kind):
    def run(seed):
        connection, listener = pair(getattr(Script(seed), kind)(0.2))
        send_all(connection, 1000)
        return heard(listener), connection.fired[kind]

    first, count = run(3)
    assert 150 < count < 250
    assert run(3) == (first, count)
    assert run(4)[0] != first
    assert first != list(range(1, 1001))


def test_one_fault_does_not_shift_the_others(pair):
    alone, listener = pair(Script(5).drop(0.3))
    send_all(alone, 50)
    kept = heard(listener)
    assert 0 < alone.fired["drop"] == 50 - len(kept)
    both, listener = pair(Script(5).duplicate(0.3).drop(0.3))
    send_all(both, 50)
    assert sorted(set(heard(listener))) == kept
    assert both.fired["duplicate"] > 0


def test_delays_follow_the_clock(pair):
    clock = Clock()
    connection, listener = pair(Script(1).delay(2.0, at=[1], p=0.0), clock)
    send_all(connection, 2)
    assert heard(listener) == [2]
    clock.now = 1.99
    assert connection.receive(0.0) is None
    assert heard(listener) == []
    clock.now = 2.0
    assert connection.receive(0.0) is None
    assert heard(listener) == [1]
    assert connection.fired == Counter(delay=1)


def test_delays_let_messages_overtake_each_other(pair):
    clock = Clock()
    connection, listener = pair(Script(1).delay(0.0, 5.0), clock)
    send_all(connection, 30)
    arrived = []
    for clock.now in (1.0, 2.0, 3.0, 4.0, 5.0):
        connection.receive(0.0)
        arrived.append(heard(listener))
    flat = [number for part in arrived for number in part]
    assert sorted(flat) == list(range(1, 31))
    assert flat != sorted(flat)
    assert all(arrived)


def test_what_nobody_overtakes_still_arrives(pair):
    connection, listener = pair(Script().reorder(at=[1]))
    connection.send([b"1"])
    assert heard(listener) == []
    assert connection.receive(0.0) is None
    assert heard(listener) == [1]


def test_altered_frames_are_noticed_and_the_senders_bytes_are_not_touched(pair):
    connection, listener = pair(Script(2).corrupt(1.0))
    vector = bytearray(1000)
    refused = 0
    for seq in range(1, 21):
        connection.send(pack(Envelope(seq, Push(seq=seq, base=0, digest=""), (vector,))))
        try:
            unpack(listener.receive(0.0)[1])
        except FrameError:
            refused += 1
    assert connection.fired["corrupt"] == 20
    assert refused >= 15  # the others hit a number in the header that no check can know
    assert vector == bytearray(1000)


def test_the_way_back(pair):
    connection, listener = pair(Script().drop(at=[2], way="receive").duplicate(at=[3], way="receive"))
    connection.send([b"hello"])
    peer, _ = listener.receive(0.0)
    for number in b"1234":
        listener.send(peer, [bytes([number])])
    assert [bytes(connection.receive(0.0)[0]) for _ in range(4)] == [b"1", b"3", b"3", b"4"]
    assert connection.receive(0.0) is None


def test_healed(pair):
    connection, listener = pair(Script().cut_after(1))
    send_all(connection, 3)
    assert connection.fired["cut"] == 2
    connection.heal()
    connection.send([b"9"])
    assert heard(listener) == [1, 9]


def test_a_wake_ends_the_wait_although_something_is_due_later(pair):
    connection, _ = pair(Script().delay(1e3))
    connection.send([b"1"])
    thread = threading.Timer(0.05, connection.wake)
    thread.start()
    assert connection.receive(1e4) is None  # pytest ends an endless wait
    thread.join()


def test_a_wait_lasts_as_long_as_asked_although_messages_are_lost(pair):
    connection, listener = pair(Script().drop(1.0, way="receive"))
    connection.send([b"hello"])
    peer, _ = listener.receive(0.0)
    for _ in range(50):
        listener.send(peer, [b"x"])
    started = time.monotonic()
    assert connection.receive(0.05) is None
    assert time.monotonic() - started > 0.045
    assert connection.fired["drop"] == 50


def test_a_listener_on_a_bad_network():
    with contextlib.ExitStack() as stack:
        inner = stack.enter_context(contextlib.closing(memory.listen()))
        listener = listener_with(Script().drop(at=[1]), inner)
        first, second = (stack.enter_context(contextlib.closing(memory.connect(listener.address))) for _ in range(2))
        first.send([b"1"])
        second.send([b"2"])
        peer, frames = listener.receive(0.0)
        assert bytes(frames[0]) == b"2"
        assert listener.send(peer, [b"lost"])
        assert listener.send(peer, [b"kept"])
        assert bytes(second.receive(0.0)[0]) == b"kept"
        assert listener.fired == Counter(drop=2)


def test_a_probability_is_one():
    with pytest.raises(ConfigError, match="expected 0 to 1"):
        Script().drop(1.5)
