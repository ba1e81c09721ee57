"""What only the HTTP transport has: tokens, certificates, hostile text, lost answers. The rest is in contracts/."""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from certificates import certificate
from eventually import ENOUGH_S, eventually

from lightning_async import transport
from lightning_async.errors import ConfigError, ProtocolError
from lightning_async.transport import xmlrpc_server, xmlrpc_text
from lightning_async.transport.xmlrpc_desk import Desk

NAME = "a-session-of-some-client"
BOMB = b"""<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]><methodCall><methodName>&c;</methodName></methodCall>"""
DTD = b'<?xml version="1.0"?><!DOCTYPE x SYSTEM "file:///etc/passwd"><methodCall><methodName>put</methodName></methodCall>'


@pytest.fixture
def opened() -> Iterator[list[object]]:
    """Closed in the end."""
    ends: list[object] = []
    yield ends
    for end in ends:
        end.close()


def post(address: str, body: bytes, path: str = "/RPC2", **headers: str) -> int:
    """The status of the answer."""
    place = urlsplit(address)
    line = http.client.HTTPConnection(place.hostname, place.port, timeout=ENOUGH_S)
    try:
        line.request("POST", path, body, headers)
        return line.getresponse().status
    finally:
        line.close()


def exchanged(listener, connection) -> None:
    """A question and its answer."""
    connection.send([b"question"])
    peer, frames = listener.receive(ENOUGH_S)
    assert bytes(frames[0]) == b"question"
    assert listener.send(peer, [b"answer"])
    assert bytes(connection.receive(ENOUGH_S)[0]) == b"answer"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (BOMB, "hostile XML"),
        (DTD, "hostile XML"),
        (b"<methodCall>" * 100_000, "not readable"),
        (b"\xff\xfe\x00garbage", "not readable"),
        (b"", "not readable"),
        (xmlrpc_text.call("system.listMethods"), "not readable"),
        (xmlrpc_text.call("put", NAME, 1, "text"), "not readable"),
        (xmlrpc_text.call("put", NAME, -1, [b"x"]), "not readable"),
        (xmlrpc_text.call("put", 5, 1, [b"x"]), "not readable"),
        (xmlrpc_text.call("poll", NAME, "epoch", "0", 0), "not readable"),
        (xmlrpc_text.call("put", "short", 1, [b"x"]), "not readable"),
    ],
)
def test_hostile_calls_are_refused_and_counted_and_others_unaffected(opened, body, why):
    listener = transport.listen("http://127.0.0.1:0")
    connection = transport.connect(listener.address)
    opened += [connection, listener]
    assert post(listener.address, body) == 400
    assert listener.refused == {why: 1}
    exchanged(listener, connection)
    assert post(listener.address, body) == 400
    assert listener.refused == {why: 2}


@pytest.mark.parametrize("head", ["", "Content-Length: 100000\r\n\r\n"], ids=["head", "body"])
def test_who_dribbles_is_hung_up_on(opened, monkeypatch, head):
    """A byte now and then keeps a socket's own timeout quiet, and a thread of the server busy."""
    monkeypatch.setattr(xmlrpc_server, "IDLE_S", 0.2)
    monkeypatch.setattr(xmlrpc_server, "SLOWEST_BYTES_S", 1e9)
    listener = transport.listen("http://127.0.0.1:0")
    opened.append(listener)
    place = urlsplit(listener.address)
    with socket.create_connection((place.hostname, place.port), ENOUGH_S) as line:
        line.settimeout(0.02)
        line.sendall(f"POST /RPC2 HTTP/1.1\r\n{head}".encode())
        eventually(lambda: hung_up(line), ENOUGH_S, "the end of the line")
    assert listener.refused["too slow"] == 1


def hung_up(line: socket.socket) -> bool:
    """Send one more byte, and see."""
    try:
        line.sendall(b"x")
        return line.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_one_address_does_not_take_all_connections(opened, monkeypatch):
    monkeypatch.setattr(xmlrpc_server, "MOST_FROM_ONE_ADDRESS", 3)
    monkeypatch.setattr(xmlrpc_server, "is_loopback", lambda host: False)
    listener = transport.listen("http://127.0.0.1:0", public=True)
    opened.append(listener)
    place = urlsplit(listener.address)
    lines = [socket.create_connection((place.hostname, place.port), ENOUGH_S) for _ in range(6)]
    try:
        eventually(lambda: listener.refused["too many connections"] == 3)
    finally:
        for line in lines:
            line.close()
    connection = transport.connect(listener.address)
    opened.insert(0, connection)
    exchanged(listener, connection)


def test_what_is_too_large_is_refused_before_it_is_read(opened):
    listener = transport.listen("http://127.0.0.1:0")
    opened.append(listener)
    listener.limit(10_000)
    place = urlsplit(listener.address)
    line = http.client.HTTPConnection(place.hostname, place.port, timeout=ENOUGH_S)
    line.putrequest("POST", "/RPC2")
    line.putheader("Content-Length", str(10**15))
    line.endheaders()
    assert line.getresponse().status == 413
    line.close()
    assert listener.refused == {"too large": 1}


def test_only_calls_are_answered(opened):
    listener = transport.listen("http://127.0.0.1:0")
    opened.append(listener)
    assert post(listener.address, b"x", path="/etc/passwd") == 400
    assert post(listener.address, b"x", **{"Content-Length": "-5"}) == 400
    assert listener.refused == {"no call": 2}


def test_a_caller_needs_the_token(opened):
    listener = transport.listen("http://127.0.0.1:0", token="a secret")
    stranger = transport.connect(listener.address, token="another")
    known = transport.connect(listener.address, token="a secret")
    opened += [stranger, known, listener]
    stranger.send([b"let me in"])
    eventually(lambda: listener.refused["wrong token"] >= 2)
    exchanged(listener, known)
    assert post(listener.address, BOMB) == 401, "its text is not even looked at"
    assert set(listener.refused) == {"wrong token"}
    eventually(lambda: "401" in stranger.trouble)


def test_a_caller_needs_a_certificate_that_was_signed(opened):
    own, other = certificate("server"), certificate("other")
    listener = transport.listen("https://127.0.0.1:0", certificate=own, clients=own)
    known = transport.connect(listener.address, authority=own, certificate=own)
    without = transport.connect(listener.address, authority=own)
    foreign = transport.connect(listener.address, authority=own, certificate=other)
    suspicious = transport.connect(listener.address, authority=other, certificate=own)
    opened += [known, without, foreign, suspicious, listener]
    for end in (without, foreign, suspicious):
        end.send([b"let me in"])
        eventually(lambda end=end: end.trouble)
    exchanged(listener, known)
    assert listener.receive(0.0) is None
    eventually(lambda: listener.refused["TLS without what is asked for"] >= 3)


def test_a_lost_answer_costs_no_message_and_gives_none_twice():
    desk = Desk(room=8, largest_bytes=100)
    assert desk.put(NAME, 1, [b"one"])
    assert desk.put(NAME, 1, [b"one"]), "said again, since its answer was lost"
    assert desk.put(NAME, 2, [b"two"])
    with pytest.raises(ProtocolError, match="message 5, expected 3"):
        desk.put(NAME, 5, [b"five"])
    peer, first = desk.take(0.0)
    assert [bytes(first[0]), bytes(desk.take(0.0)[1][0]), desk.take(0.0)] == [b"one", b"two", None]
    for answer in (b"a", b"b"):
        assert desk.send(peer, [answer])
    assert desk.poll(NAME, "", 0, 0) == [desk.epoch, [[1, [b"a"]], [2, [b"b"]]]]
    assert desk.poll(NAME, desk.epoch, 0, 0)[1] == [[1, [b"a"]], [2, [b"b"]]], "the answer was lost"
    assert desk.poll(NAME, desk.epoch, 1, 0)[1] == [[2, [b"b"]]]
    assert desk.poll(NAME, "of another life", 2, 0)[1] == [[2, [b"b"]]], "its numbers mean nothing here"
    assert desk.poll(NAME, desk.epoch, 2, 0)[1] == []


def test_a_silent_session_is_forgotten():
    now = [0.0]
    desk = Desk(room=8, largest_bytes=100, clock=lambda: now[0])
    desk.put(NAME, 1, [b"one"])
    peer, _ = desk.take(0.0)
    now[0] = 59.0
    assert desk.send(peer, [b"x"])
    now[0] = 61.0
    assert not desk.send(peer, [b"x"])
    assert desk.put(NAME, 7, [b"again"]), "with numbers that go on, as after a life of the server"


def test_who_does_not_poll_fills_no_memory():
    """Each question for the parameters makes an answer of the model's size."""
    desk = Desk(room=64, largest_bytes=100)
    desk.put(NAME, 1, [b"one"])
    peer, _ = desk.take(0.0)
    assert [desk.send(peer, [bytes(90)]) for _ in range(8)] == [True] * 4 + [False] * 4
    desk.poll(NAME, desk.epoch, 2, 0)
    assert [desk.send(peer, [bytes(90)]) for _ in range(8)] == [True] * 2 + [False] * 6
    desk.poll(NAME, desk.epoch, 6, 0)
    assert desk.send(peer, [bytes(1000)]), "one is taken always"


def test_nobody_chooses_his_key():
    desk = Desk(room=8, largest_bytes=100)
    desk.put(NAME, 1, [b"one"])
    peer, _ = desk.take(0.0)
    assert len(peer) == 16
    assert NAME.encode() not in peer


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("http://0.0.0.0:0", {}, "needs https"),
        ("http://0.0.0.0:0", {"token": "x"}, "needs https"),
        ("https://127.0.0.1:0", {}, "needs a certificate"),
        ("http://127.0.0.1", {}, "expected http://host:port"),
        ("http://127.0.0.1:0", {"clients": "x"}, "certificates of clients need https"),
    ],
)
def test_what_cannot_be_listened_at(url, options, says):
    with pytest.raises(ConfigError, match=says):
        transport.listen(url, **options)


def test_https_beyond_this_machine_needs_a_guard():
    with pytest.raises(ConfigError, match="needs https with a certificate, and a token"):
        transport.listen("https://0.0.0.0:0", certificate=certificate())


@pytest.mark.parametrize("url", ["http://*:80", "http://127.0.0.1:0", "http://127.0.0.1"])
def test_what_cannot_be_dialled(url):
    with pytest.raises(ConfigError):
        transport.connect(url)


def test_texts_survive():
    values = (NAME, 3, [b"", b"\x00\xff" * 500])
    assert xmlrpc_text.read_call(xmlrpc_text.call("put", *values)) == ("put", values)
    assert xmlrpc_text.read_answer(xmlrpc_text.answer([1, [b"x"]])) == [1, [b"x"]]
    for wrong in (xmlrpc_text.answer(1), xmlrpc.client.dumps((), "m").encode()[:-3], b"<methodResponse/>"):
        with pytest.raises(ProtocolError):
            xmlrpc_text.read_call(wrong)
