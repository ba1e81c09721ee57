"""A server at several addresses: each peer gets its own answers, whatever comes over the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
import zmq
from eventually import ENOUGH_S, eventually
from test_xmlrpc import BOMB, post

from lightning_async import transport
from lightning_async.errors import ConfigError
from lightning_async.transport.several import MOST, Several, several

NEVER_S = 1e4
STARTS = (["tcp://127.0.0.1:0", "http://127.0.0.1:0"], ["tcp://127.0.0.1:0", "tcp://[::1]:0", "memory://"])


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(undo: ExitStack, starts: list[str]) -> Several:
    return undo.enter_context(closing(Several([transport.listen(start) for start in starts])))


@pytest.mark.parametrize("starts", STARTS)
def test_each_peer_gets_its_own_answer(undo, starts):
    listener = opened(undo, starts)
    ends = [undo.enter_context(closing(transport.connect(address))) for address in listener.addresses * 3]
    for number, end in enumerate(ends):
        end.send([b"%d" % number])
    peers = {}
    while len(peers) < len(ends):
        peer, frames = listener.receive(ENOUGH_S) or pytest.fail("nothing came")
        peers[peer] = bytes(frames[0])
    for peer, name in peers.items():
        assert listener.send(peer, [b"you are " + name])
    for number, end in enumerate(ends):
        assert bytes(end.receive(ENOUGH_S)[0]) == b"you are %d" % number
    assert listener.address == listener.addresses[0]
    assert not listener.send(b"", [b"x"])
    assert not listener.send(b"\xff nobody", [b"x"])


@pytest.mark.parametrize("starts", STARTS)
def test_a_wait_ends_with_a_message_of_any_and_with_a_wake(undo, starts):
    listener = opened(undo, starts)
    for address in listener.addresses:
        end = undo.enter_context(closing(transport.connect(address)))
        timer = threading.Timer(0.05, end.send, args=([b"x"],))
        timer.start()
        found = None
        while found is None:  # a wake that came before counts too
            found = listener.receive(NEVER_S)
        assert bytes(found[1][0]) == b"x"
        timer.join()
    timer = threading.Timer(0.05, listener.wake)
    timer.start()
    assert listener.receive(NEVER_S) is None
    timer.join()
    began = time.monotonic()
    assert listener.receive(0.05) is None
    assert time.monotonic() - began < 10


def test_a_wrong_client_on_one_never_disturbs_the_others(undo):
    listener = opened(undo, STARTS[0])
    tcp, http = listener.addresses
    good = [undo.enter_context(closing(transport.connect(address))) for address in (tcp, http)]
    for _ in range(5):
        assert post(http, BOMB) == 400
        with zmq.Context() as context, context.socket(zmq.SUB) as wrong:  # of a kind that no ROUTER speaks with
            wrong.setsockopt(zmq.LINGER, 0)
            wrong.connect(tcp)
            for end in good:
                end.send([b"ping"])
                peer, frames = eventually(lambda: listener.receive(0.2))
                assert bytes(frames[0]) == b"ping"
                assert listener.send(peer, [b"pong"])
                assert bytes(end.receive(ENOUGH_S)[0]) == b"pong"
    assert listener._all[1].refused == {"hostile XML": 5}


def test_limits_and_closing_hold_for_all(undo):
    listener = opened(undo, STARTS[0])
    listener.limit(1000)
    for address in listener.addresses:
        large, small = (undo.enter_context(closing(transport.connect(address))) for _ in range(2))
        large.send([bytes(1001)])
        small.send([b"small"])
        assert bytes(eventually(lambda: listener.receive(0.2))[1][0]) == b"small"
    listener.close()
    for address in listener.addresses:
        undo.enter_context(closing(transport.listen(address)))


def test_one_stays_itself_and_too_many_are_refused(undo):
    only = undo.enter_context(closing(transport.listen("memory://")))
    assert several([only]) is only
    for count in (0, MOST + 1):
        with pytest.raises(ConfigError, match=f"got {count} addresses"):
            Several([only] * count)
