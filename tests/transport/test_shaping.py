"""The shaping proxy over real sockets: nothing is lost or altered, nothing comes too early, cuts cut, all is freed.

That bytes do not come too early is exact on every machine; that they do not come too late is measured by
`python -m bench shaping`, since a machine that stands still is late with everything.
"""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest
from eventually import eventually
from streams import dial, drained, received, through

from lightning_async import transport
from lightning_async.errors import ConfigError, NetworkError
from lightning_async.links import Link, link
from lightning_async.transport.shaping import Proxy

BAD = "link(up_mbps=40, down_mbps=40, latency_ms=5, jitter_ms=10, loss=0.02, duplicate=0.02)"


@pytest.mark.parametrize("choice", ["lan", BAD, "lan(brownout=cycle(every_s=0.2, lasts_s=0.1, factor=0.0))"])
def test_bytes_arrive_whole_and_in_order_both_ways_at_once(choice):
    data = {True: os.urandom(1_500_000), False: os.urandom(700_000)}
    with through(choice) as (proxy, near, far):
        senders = [threading.Thread(target=end.sendall, args=(data[up],)) for up, end in ((True, near), (False, far))]
        for sender in senders:
            sender.start()
        assert received(far, len(data[True])) == data[True]
        assert received(near, len(data[False])) == data[False]
        for sender in senders:
            sender.join()
        eventually(lambda: (proxy.carried_bytes(up=True), proxy.carried_bytes(up=False)) == (1_500_000, 700_000))
        assert (proxy.lost > 0) == (choice == BAD)


def test_nothing_comes_before_the_line_could_bring_it():
    line = Link(up_mbps=16.0, down_mbps=16.0, latency_ms=60.0)
    with through(line) as (_, near, far):
        began = time.monotonic()
        near.sendall(b"x")
        assert received(far, 1) == b"x"
        assert time.monotonic() - began >= 0.06
        far.sendall(b"x")
        assert received(near, 1) == b"x"
        assert time.monotonic() - began >= 0.12
        began = time.monotonic()
        near.sendall(bytes(1_000_000))
        received(far, 1_000_000)
        assert time.monotonic() - began >= 0.06 + 0.5, "a million bytes at two million a second"


def test_each_direction_has_its_own_rate():
    with through("link(up_mbps=800, down_mbps=8, latency_ms=0)") as (_, near, far):
        began = time.monotonic()
        far.sendall(bytes(500_000))
        received(near, 500_000)
        assert time.monotonic() - began >= 0.45
        waited = []
        for _ in range(5):
            began = time.monotonic()
            near.sendall(bytes(500_000))
            received(far, 500_000)
            waited.append(time.monotonic() - began)
        assert min(waited) < 0.45, "the shortest of a few: it is a hundredth of that on an idle machine"


def test_the_line_is_shared():
    with through("link(up_mbps=8, latency_ms=0)") as (proxy, near, far), socket.create_server(("127.0.0.1", 0)):
        began = time.monotonic()
        sender = threading.Thread(target=near.sendall, args=(bytes(300_000),))
        sender.start()
        with dial(proxy) as other:
            other.sendall(bytes(300_000))
            received(far, 300_000)
            sender.join()
            eventually(lambda: proxy.carried_bytes(up=True) >= 400_000)
        assert time.monotonic() - began >= 0.35, "not twice the rate for two"


def test_a_sender_is_held_back_by_what_its_reader_does_not_take():
    with through("lan") as (proxy, near, far):
        near.setblocking(False)
        sent = 0
        still_since = time.monotonic()
        while time.monotonic() - still_since < 1.0 and sent < 200e6:
            try:
                sent += near.send(bytes(65_536))
                still_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        held = sum(way._held for each in tuple(proxy._connections) for way in each.ways)
        assert sent < 200e6
        assert held <= 2 * 25e6 + 2**18, "not more than the line's own"
        near.setblocking(True)
        near.shutdown(socket.SHUT_WR)
        assert drained(far) == sent


def test_the_end_of_one_direction_leaves_the_other_open():
    with through("wan_good") as (proxy, near, far):
        near.sendall(b"question")
        near.shutdown(socket.SHUT_WR)
        assert received(far, 100) == b"question"
        far.sendall(b"answer")
        far.close()
        assert received(near, 100) == b"answer"
        eventually(lambda: not proxy._connections)


def test_a_cut_breaks_every_connection_and_the_next_one_gets_through():
    with through("lan") as (proxy, near, far):
        near.sendall(b"x")
        received(far, 1)
        proxy.cut()
        assert (drained(near), drained(far)) == (0, 0)
        assert proxy.cuts == 1
        with dial(proxy) as again:
            again.sendall(b"x")
            eventually(lambda: proxy.carried_bytes(up=True) == 2)


def test_nobody_gets_through_while_the_line_is_away():
    with through("lan") as (proxy, near, _):
        proxy.cut(away_s=1e6)
        assert drained(near) == 0
        with dial(proxy) as again:
            assert drained(again) == 0
        proxy.cut(away_s=0.0)
        eventually(lambda: proxy.cuts == 2)
        with dial(proxy) as again:
            again.sendall(b"x")
            eventually(lambda: proxy.carried_bytes(up=True) == 1)


def test_cuts_come_when_so_many_bytes_have_passed():
    with through("lan(cuts=cuts(at_mb=(0.5, 2.0)))") as (proxy, near, far):
        with pytest.raises(OSError, match=r"reset|[Bb]roken|abort"):
            near.sendall(bytes(50_000_000))
        assert drained(far) <= 500_000 + 2**18
        assert 500_000 <= proxy.carried_bytes(up=True) <= 500_000 + 2**18, "the piece with which it is enough"
        assert proxy.cuts == 1


def test_cuts_come_at_their_time_and_by_chance():
    with through("lan(cuts=cuts(at_s=(0.05,), every_s=0.1))") as (proxy, _, _):
        eventually(lambda: proxy.cuts >= 4)


def test_messages_of_the_tcp_transport_pass_and_survive_disconnects(ends_of):
    listener = ends_of(transport.listen("tcp://127.0.0.1:0"))
    with Proxy(listener.address, link("wan_good(cuts=cuts(at_mb=(0.3, 0.6)))"), seed=1) as proxy:
        connection = ends_of(transport.connect(proxy.address))
        heard = set()

        def exchange():
            for number in set(range(10)) - heard:
                try:
                    connection.send([b"%d" % number, bytes(100_000)])
                except NetworkError:  # its queue is full: it has been said often enough
                    break
            while (message := listener.receive(0.2)) is not None:
                heard.add(int(bytes(message[1][0])))
            return len(heard) == 10

        eventually(exchange)
        assert proxy.cuts == 2


@pytest.fixture
def ends_of():
    """Closes what it was given."""
    opened = []

    def keep(end):
        opened.append(end)
        return end

    yield keep
    for end in opened:
        end.close()


def test_nobody_at_the_other_end_is_a_hang_up():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with Proxy(f"tcp://127.0.0.1:{held.getsockname()[1]}", link("lan")) as proxy:
            for _ in range(3):
                with dial(proxy) as line:
                    assert drained(line) == 0


def test_closing_in_the_middle_frees_everything():
    for _ in range(3):
        with through("straggler") as (proxy, near, far):
            near.sendall(bytes(30_000))
            far.sendall(bytes(30_000))
            proxy.close()
            proxy.close()
            proxy.cut()
            assert drained(near) <= 30_000
            with pytest.raises(ConnectionRefusedError):
                dial(proxy)


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        ("memory://here", {}, "no line that could be shaped"),
        ("tcp://*:5555", {}, "where a server may listen"),
        ("127.0.0.1:5555", {}, "expected tcp://host:port"),
        ("tcp://127.0.0.1:5555", {"listen": "tcp://0.0.0.0:0"}, "other machines"),
    ],
)
def test_addresses_that_cannot_be(target, options, says):
    with pytest.raises(ConfigError, match=says):
        Proxy(target, link("lan"), **options)


def test_a_taken_port_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="cannot listen"):
            Proxy("tcp://127.0.0.1:1", link("lan"), listen=url)


def test_the_scheme_of_the_target_stays():
    with Proxy("http://127.0.0.1:80/", link("lan"), listen="tcp://[::1]:0") as proxy:
        assert proxy.address.startswith("http://[::1]:")
        assert "0 connections" in repr(proxy)
