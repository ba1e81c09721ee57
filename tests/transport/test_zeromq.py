"""What only the TCP transport has: other programs that knock, real byte counts, ports, forks, machines that vanish."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import threading

import pytest
import zmq
from eventually import ENOUGH_S, eventually
from ports import nobody
from tunnel import Tunnel

from lightning_async.errors import CallerError, ConfigError, NetworkError
from lightning_async.transport import zeromq, zeromq_endpoint
from lightning_async.transport.zeromq_endpoint import Endpoint
from lightning_async.wire.frames import Envelope, FrameError, pack, unpack
from lightning_async.wire.messages import Report, Status

WAIT_S = ENOUGH_S
LOOPBACK = "tcp://127.0.0.1:0"


@pytest.fixture
def listener():
    with contextlib.closing(zeromq.listen(LOOPBACK)) as opened:
        yield opened


@pytest.fixture
def dial(listener):
    """Connections to the listener, closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda url=None: stack.enter_context(contextlib.closing(zeromq.connect(url or listener.address)))


def place(end):
    host, _, port = end.address.removeprefix("tcp://").rpartition(":")
    return host.strip("[]"), int(port)


def is_served(listener, connection):
    """Whether an honest request still gets its answer; what strangers sent is read and refused on the way."""
    connection.send(pack(Envelope(7, Status())))
    while (arrived := listener.receive(WAIT_S)) is not None:
        peer, frames = arrived
        with contextlib.suppress(FrameError):
            request = unpack(frames)
            assert listener.send(peer, pack(Envelope(request.id, Report(state={"ok": True}))))
            return unpack(connection.receive(WAIT_S)).message == Report(state={"ok": True})
    return False


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n",
    "tls": bytes.fromhex("16030100a5010000a10303") + bytes(range(160)),
    "zeros": bytes(100_000),
    "ones": b"\xff" * 100_000,
    "greeting, then noise": b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48) + os.urandom(5000),
    "old greeting, then noise": b"\x01\x00" + os.urandom(5000),
    "an enormous frame of the old protocol": b"\xff" + (2**62).to_bytes(8, "big") + b"\0" + bytes(1000),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_disturbs_nobody(listener, dial, kind):
    connection = dial()
    assert is_served(listener, connection)
    with socket.create_connection(place(listener)) as stranger:
        with contextlib.suppress(OSError):
            stranger.sendall(GARBAGE[kind])
        assert is_served(listener, connection)
    assert is_served(listener, connection)
    assert is_served(listener, dial())


def test_a_stranger_that_says_nothing_is_dropped(monkeypatch):
    monkeypatch.setattr(zeromq_endpoint, "HANDSHAKE_S", 0.2)
    with (
        contextlib.closing(zeromq.listen(LOOPBACK)) as listener,
        socket.create_connection(place(listener), timeout=WAIT_S) as stranger,
    ):
        while stranger.recv(1000):
            pass  # its greeting, then the end


def test_a_plain_request_socket_gets_an_answer(listener):
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.linger = 0
        client.connect(listener.address)
        _, header = pack(Envelope(3, Status()))
        client.send(header)
        peer, frames = listener.receive(WAIT_S)
        assert unpack(frames) == Envelope(3, Status())
        listener.send(peer, pack(Envelope(3, Report(state={"a": 1}))))
        assert client.poll(WAIT_S * 1000)
        assert unpack([b"", client.recv()]) == Envelope(3, Report(state={"a": 1}))


@pytest.mark.parametrize("sizes", [(0, 100, 255, 256, 300_000), (10,) * 50, (5_000_000,)])
def test_bytes_are_those_on_the_line(listener, dial, sizes):
    with Tunnel(listener.address) as tunnel:
        connection = dial(tunnel.url)
        rounds = max(1, 300_000 // sum(sizes))
        for _ in range(rounds):
            connection.send([bytes(size) for size in sizes])
            peer, frames = listener.receive(WAIT_S)
            assert listener.send(peer, frames)
            assert connection.receive(WAIT_S) is not None
        counted = connection.traffic()
        assert counted.sent_bytes == pytest.approx(tunnel.up_bytes, rel=0.01)
        assert counted.received_bytes == pytest.approx(tunnel.down_bytes, rel=0.01)


def test_a_line_that_is_cut_comes_back(listener, dial):
    with Tunnel(listener.address) as tunnel:
        connection = dial(tunnel.url)
        assert is_served(listener, connection)
        tunnel.cut()
        eventually(lambda: _served_soon(listener, connection))
        assert tunnel.connections >= 2


def test_a_frame_beyond_the_limit_ends_its_connection_before_it_is_stored():
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(zeromq.listen(LOOPBACK, largest_message_bytes=10_000)))
        tunnel = stack.enter_context(Tunnel(listener.address))
        large = stack.enter_context(contextlib.closing(zeromq.connect(tunnel.url)))
        large.send([bytes(10_000_000)])
        other = stack.enter_context(contextlib.closing(zeromq.connect(listener.address)))
        assert is_served(listener, other)
        eventually(lambda: listener.receive(0.02) is not None or tunnel.connections > 1)
        assert tunnel.connections > 1  # it was dropped, and dials again
        assert is_served(listener, other)


@pytest.mark.parametrize("late", [True, False])
def test_a_limit_set_before_anybody_spoke_holds_in_the_library(listener, dial, late):
    connection = dial()
    if late:
        connection.send([b"hello"])
        listener.receive(WAIT_S)
    listener.limit(10_000)
    listener._largest_bytes = 2**40  # so that only the library refuses
    dial().send([bytes(20_000)])
    if late:
        assert listener.receive(WAIT_S) is not None
    else:
        assert listener.receive(0.3) is None
    assert is_served(listener, connection)


@pytest.mark.parametrize(
    "url", ["tcp://*:0", "tcp://0.0.0.0:0", "tcp://[::]:0", "tcp://192.0.2.1:0", "tcp://example.org:1"]
)
def test_a_public_port_needs_permission(url):
    with pytest.raises(ConfigError, match="public=True"):
        zeromq.listen(url)


def test_a_public_port_with_permission():
    with contextlib.closing(zeromq.listen("tcp://*:0", public=True)) as listener:
        assert socket.gethostname() in listener.address
        for host in ("127.0.0.1", *(["[::1]"] if socket.has_ipv6 and _has_loopback6() else [])):
            with contextlib.closing(zeromq.connect(f"tcp://{host}:{place(listener)[1]}")) as connection:
                assert is_served(listener, connection)


def _has_loopback6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_loopback6(), reason="this machine has no IPv6 loopback")


@needs_ipv6
def test_ipv6():
    with contextlib.closing(zeromq.listen("tcp://[::1]:0")) as listener:
        assert listener.address.startswith("tcp://[::1]:")
        with contextlib.closing(zeromq.connect(listener.address)) as connection:
            assert is_served(listener, connection)


def _name_of_loopback6() -> str | None:
    for name in ("ip6-localhost", "ip6-loopback", "localhost6"):
        with contextlib.suppress(OSError):
            if {item[4][0] for item in socket.getaddrinfo(name, 1)} == {"::1"}:
                return name
    return None


@needs_ipv6
@pytest.mark.skipif(_name_of_loopback6() is None, reason="no name here stands for ::1 only")
def test_a_name_that_answers_only_over_ipv6_is_found(monkeypatch):
    monkeypatch.setattr(zeromq, "OTHER_FAMILY_S", 1.0)
    with contextlib.closing(zeromq.listen("tcp://[::1]:0")) as listener:
        url = f"tcp://{_name_of_loopback6()}:{place(listener)[1]}"
        with contextlib.closing(zeromq.connect(url)) as connection:
            eventually(lambda: _served_soon(listener, connection))


@pytest.mark.parametrize(
    "url", ["tcp://", "tcp://host", "tcp://host:99999", "tcp://a b:1", "tcp://::1:5", "http://host:1", "tcp://host:1/x"]
)
def test_a_bad_url_says_what_is_expected(url):
    for attempt in (zeromq.listen, zeromq.connect):
        with pytest.raises(ConfigError, match="expected tcp://host:port"):
            attempt(url)


@pytest.mark.parametrize("url", ["tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://127.0.0.1:0"])
def test_where_a_server_listens_is_not_always_where_one_dials(url):
    with pytest.raises(ConfigError, match="not where one can be dialled"):
        zeromq.connect(url)


def test_a_taken_port(listener):
    with pytest.raises(ConfigError, match="choose another port"):
        zeromq.listen(listener.address)


def test_localhost_is_the_address_that_servers_take(listener, dial):
    assert is_served(listener, dial(listener.address.replace("127.0.0.1", "localhost")))


def _in_a_child(listener, connection, answers):
    for use in (lambda: listener.receive(0.0), lambda: connection.send([b"x"]), lambda: listener.send(b"", [b"x"])):
        try:
            use()
            answers.send("used")
        except CallerError as error:
            answers.send(str(error))
    connection.close()
    listener.close()
    answers.send("closed")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_told_to_dial_for_itself(listener, dial):
    connection = dial()
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_a_child, args=(listener, connection, there))
    child.start()
    try:
        answers = [here.recv() for _ in range(4) if here.poll(WAIT_S)]
    finally:
        child.join(WAIT_S)
        child.kill()
        child.join()
        child.close()
        here.close()
        there.close()
    assert all(f"belongs to process {os.getpid()}" in answer for answer in answers[:3])
    assert answers[3:] == ["closed"]
    assert is_served(listener, connection)


def test_machines_that_vanish_are_noticed_by_the_kernel(listener, dial):
    assert is_served(listener, dial())
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(line) for line in _sockets_of_this_process()]
        lines = [line for line in lines if line.family == socket.AF_INET and not _listens(line)]
        assert len(lines) == 2
        for line in lines:
            assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == zeromq_endpoint.SILENCE_S / 3
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == zeromq_endpoint.SILENCE_S * 1000


def _listens(line):
    return line.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def _sockets_of_this_process():
    """Duplicates, the library's own sockets among them."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                yield socket.socket(fileno=os.dup(int(number)))


@pytest.mark.slow
@pytest.mark.parametrize("heartbeats", [False, True])
def test_zmtp_heartbeats_would_end_a_slow_upload(monkeypatch, heartbeats):
    """The reason for docs/decisions/0010: they cannot pass the frame that is travelling."""
    configure = Endpoint._configure

    def with_heartbeats(end, *limits):
        configure(end, *limits)
        end.socket.heartbeat_ivl, end.socket.heartbeat_timeout = 200, 800

    if heartbeats:
        monkeypatch.setattr(Endpoint, "_configure", with_heartbeats)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(zeromq.listen(LOOPBACK)))
        tunnel = stack.enter_context(Tunnel(listener.address))
        tunnel.up_rate = 4e6
        connection = stack.enter_context(contextlib.closing(zeromq.connect(tunnel.url)))
        connection.send([b"hello"])
        assert listener.receive(WAIT_S) is not None
        connection.send([bytes(16_000_000)])
        arrived = None
        while arrived is None and tunnel.connections == 1:  # four seconds; pytest ends an endless wait
            arrived = listener.receive(0.1)
        assert (arrived is None) is heartbeats
        assert (tunnel.connections > 1) is heartbeats


def test_a_queue_that_is_read_never_fills():
    """ZeroMQ looks only now and then at what its peer has read, and would call the queue full."""
    with (
        contextlib.closing(zeromq.listen(LOOPBACK, queue=4)) as listener,
        contextlib.closing(zeromq.connect(listener.address, queue=4)) as connection,
    ):
        for number in range(200):
            connection.send([b"%d" % number])
            peer, _ = listener.receive(WAIT_S)
            assert listener.send(peer, [b"%d" % number])
            assert connection.receive(WAIT_S) is not None


def test_a_large_frame_is_not_copied_and_a_small_one_is(dial):
    small, large = bytearray(1000), bytearray(zeromq_endpoint.COPY_BELOW_BYTES)
    with nobody() as address:  # what is sent stays queued
        dial(address).send([small, large])
        small.append(0)
        with pytest.raises(BufferError):  # the queue holds its memory
            large.append(0)


def test_a_program_that_forgets_to_close_still_ends():
    code = (
        "import sys\n"
        "from lightning_async.transport import zeromq\n"
        "connection = zeromq.connect(sys.argv[1])\n"
        "connection.send([b'never delivered'])\n"
        "del connection; import gc; gc.collect()\n"
        "listener = zeromq.listen('tcp://127.0.0.1:0')\n"
    )
    with nobody() as address:
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, address], timeout=2 * ENOUGH_S, check=True)


def test_wakes_from_many_threads(dial):
    connection = dial()
    wakes = lambda: [connection.wake() for _ in range(1000)]  # noqa: E731
    threads = [threading.Thread(target=wakes, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert connection.receive(1e4) is None


def _served_soon(listener, connection):
    with contextlib.suppress(NetworkError):  # its queue is full: it has asked often enough
        connection.send([b"", b"hello?"])
    assert connection.receive(0.0) is None
    return listener.receive(0.2) is not None
