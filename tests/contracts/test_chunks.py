"""Large messages in chunks over every transport of the table, with small ones between them."""

from __future__ import annotations

import pytest
from eventually import eventually
from wires import COPIES, START

from lightning_async.transport import TRANSPORTS, connect
from lightning_async.transport.freight import Freight
from lightning_async.wire.frames import Envelope, pack, unpack
from lightning_async.wire.messages import Ack, Beat, Params, Push
from lightning_async.wire.parts import PARTS

SIZE = 3_000_000


class Pair:
    """A server's end and a worker's, each with its freight; the server answers a Beat by an Ack."""

    def __init__(self, ends):
        self.ends, self.listener = ends, ends.listen()
        self.connection = ends.connect(self.listener.address)
        self.far = Freight(self.listener.send, lambda peer: "w")
        self.near = Freight(self._send)
        self.near.takers = {b""}
        self.peer, self.came, self.up, self.down = b"", [], [], []

    def _send(self, peer, frames):
        self.connection.send(frames)
        return True

    def turn(self):
        if (message := self.listener.receive(0.005)) is not None:
            self.peer = message[0]
            self.far.takers.add(self.peer)
            self._take(self.far, *message, self.up)
        if (frames := self.connection.receive(0.005)) is not None:
            self._take(self.near, b"", frames, self.down)
        self.near.tick()
        self.far.tick()

    def _take(self, freight, peer, frames, came):
        envelope = unpack(frames)
        if isinstance(envelope.message, PARTS):
            frames = freight.take(peer, envelope)
            if frames is None:
                return
            envelope = unpack(frames)
        came.append(envelope)
        if isinstance(envelope.message, Beat):
            self.listener.send(peer, pack(Envelope(envelope.id, Ack(version=0))))

    def beat(self):
        self.connection.send(pack(Envelope(99, Beat())))

    def redial(self):
        self.connection.close()
        self.connection = self.ends.connect(self.listener.address)


def test_every_transport_is_held_to_this():
    assert set(START) == set(TRANSPORTS)


def test_a_message_comes_whole_and_small_ones_pass_in_between(ends):
    pair = Pair(ends)
    push = Envelope(1, Push(seq=1, base=0, digest="d"), (bytes(range(250)) * (SIZE // 250), b"", b"end"))
    pair.near.send(b"", pack(push))
    pair.turn()
    pair.beat()
    eventually(lambda: pair.turn() or len(pair.up) == 2)
    assert [type(envelope.message) for envelope in pair.up] == [Beat, Push], "the beat did not wait"
    assert pair.up[1] == push
    eventually(lambda: pair.turn() or pair.down)
    assert isinstance(pair.down[0].message, Ack)


@pytest.mark.parametrize("up", [True, False])
def test_after_a_new_connection_only_the_rest_comes(ends, up):
    pair = Pair(ends)
    pair.beat()
    eventually(lambda: pair.turn() or pair.down)
    kind = Push(seq=1, base=0, digest="d") if up else Params(form="snapshot", version=1)
    whole = pack(Envelope(1, kind, (bytes(range(250)) * (SIZE // 250),)))
    _ = pair.near.send(b"", whole) if up else pair.far.send(pair.peer, whole)
    there = pair.far if up else pair.near

    def some():
        pair.turn()
        return any(gathered.there > SIZE // 8 for found in there._gathered.values() for gathered in found.values())

    eventually(some)
    first = pair.connection.traffic()
    pair.near.held = True
    pair.redial()
    pair.near.go_on()
    eventually(lambda: pair.turn() or [envelope for envelope in pair.up + pair.down if envelope.payload])
    came = (pair.up if up else pair.down)[-1]
    assert came == unpack(whole)
    second = pair.connection.traffic()
    moved = second.sent_bytes if up else second.received_bytes
    factor = 1.36 if ends.scheme in COPIES else 1.0
    assert 0 < moved < 0.95 * factor * SIZE, "not all of it again"
    assert (first.sent_bytes if up else first.received_bytes) > 0


def test_dialling_says_whether_it_cuts():
    connection = connect("memory://cuts")
    assert connection.cuts
    connection.close()
