"""What a REQ client may expect of the server's end, and what it cannot do to others. The messages begin with an empty
frame, the delimiter, which its socket adds and takes away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
import zmq
from eventually import ENOUGH_S, eventually
from wires import Ends

from lightning_async.transport.base import Listener


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends("tcp")
    yield made
    made.close()


@pytest.fixture
def dial() -> Iterator[object]:
    """Makes REQ sockets, each with a context of its own."""
    with ExitStack() as undo:

        def make(listener: Listener) -> zmq.Socket[bytes]:
            context = undo.enter_context(zmq.Context())
            socket = undo.enter_context(context.socket(zmq.REQ))
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, int(ENOUGH_S * 1000))
            socket.connect(listener.address)
            return socket

        yield make


def heard(listener: Listener) -> tuple[bytes, list[bytes]]:
    peer, frames = listener.receive(ENOUGH_S)
    return peer, [bytes(frame) for frame in frames]


def test_requests_and_replies_in_order(ends, dial):
    listener = ends.listen()
    client = dial(listener)
    for number in range(100):
        client.send_multipart([b"%d" % number, bytes(number)])
        peer, frames = heard(listener)
        assert frames == [b"", b"%d" % number, bytes(number)]
        assert listener.send(peer, [b"", b"reply %d" % number])
        assert client.recv_multipart() == [b"reply %d" % number]


def test_many_of_both_kinds_each_get_their_own_answer(ends, dial):
    listener = ends.listen()
    locked, free = [dial(listener) for _ in range(20)], [ends.connect(listener.address) for _ in range(20)]
    for number, (one, other) in enumerate(zip(locked, free, strict=True)):
        one.send(b"%d" % number)
        other.send([b"", b"%d" % (100 + number)])
    peers = dict(heard(listener) for _ in range(40))
    for peer, frames in peers.items():
        assert listener.send(peer, [b"", b"you are " + frames[1]])
    for number, (one, other) in enumerate(zip(locked, free, strict=True)):
        assert one.recv() == b"you are %d" % number
        assert bytes(other.receive(ENOUGH_S)[1]) == b"you are %d" % (100 + number)


def test_a_large_message_arrives_whole(ends, dial):
    listener = ends.listen()
    client = dial(listener)
    vector = np.random.default_rng(0).standard_normal(1_000_000).tobytes()
    client.send_multipart([b"header", vector])
    peer, frames = heard(listener)
    assert frames == [b"", b"header", vector]
    listener.send(peer, [b"", vector])
    assert client.recv() == vector


def test_one_that_hangs_up_without_an_answer_disturbs_nobody(ends, dial):
    listener = ends.listen()
    other = ends.connect(listener.address)
    for _ in range(10):
        impatient = dial(listener)
        impatient.send(os.urandom(100))
        peer, _ = heard(listener)
        impatient.close()
        eventually(lambda peer=peer: not listener.send(peer, [b"", b"late"]))
        other.send([b"", b"ping"])
        peer, frames = heard(listener)
        assert frames == [b"", b"ping"]
        assert listener.send(peer, [b"", b"pong"])
        assert bytes(other.receive(ENOUGH_S)[1]) == b"pong"
