"""Hostile and broken servers, and what is no server of ours, before an HTTP worker: it goes on asking, with a reason
that is named, and is there when an honest server answers at last."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import itertools
import re
import socket
import struct
import threading
import time
import xmlrpc.client
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pytest
from eventually import ENOUGH_S, eventually

from lightning_async import transport
from lightning_async.errors import ProtocolError
from lightning_async.transport import xmlrpc_client, xmlrpc_line
from lightning_async.transport.xmlrpc_client import XmlRpcConnection, try_out
from lightning_async.transport.xmlrpc_text import answer

LENGTH = re.compile(rb"content-length: ([0-9]+)", re.IGNORECASE)
METHOD = re.compile(rb"<methodName>([a-z]+)</methodName>")
HELLO = [b"hello"]
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LATE = "takes too long|timed out"
BOMB = b"""<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<methodResponse><params><param><value>&c;</value></param></params></methodResponse>"""
NIL = xmlrpc.client.dumps((None,), methodresponse=True, allow_none=True).encode()

Script = Callable[[str], Iterable[bytes]]


def reply(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Server:
    """Answers each call with the pieces that `script` gives for its method, and then hangs up if `closes`."""

    def __init__(self) -> None:
        self.script: Script = self.honest
        self.closes, self.blurts = True, b""
        self.asked: Counter[str] = Counter()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self._lines: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def honest(self, method: str) -> Iterable[bytes]:
        found = {"poll": ["epoch", [[1, HELLO]]], "put": True, "leave": True}[method]
        return [reply(answer(found))]

    def close(self) -> None:
        for line in (self._door, *self._lines):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()
        for thread in self._threads:
            thread.join(ENOUGH_S)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._door.accept()
                line.settimeout(ENOUGH_S)
                self._lines.append(line)
                self._threads.append(threading.Thread(target=self._speak, args=(line,)))
                self._threads[-1].start()

    def _speak(self, line: socket.socket) -> None:
        with contextlib.suppress(OSError), line:
            line.sendall(self.blurts)
            while method := _call(line):
                self.asked[method] += 1
                for piece in self.script(method):
                    if piece == RESET:
                        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return
                    line.sendall(piece)
                if self.closes:
                    return


RESET = b"\0reset"


def _call(line: socket.socket) -> str:
    """The method of the next call; empty at the end, or for what is none."""
    text = b""
    while b"\r\n\r\n" not in text or len(text.partition(b"\r\n\r\n")[2]) < int((LENGTH.search(text) or [0, 0])[1]):
        piece = line.recv(65536)
        if not piece:
            return ""
        text += piece
    found = METHOD.search(text)
    return found[1].decode() if found else ""


@pytest.fixture
def server() -> Iterator[Server]:
    with contextlib.closing(Server()) as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short, and so are answers."""
    monkeypatch.setattr(xmlrpc_line, "AGAIN_MAX_S", 0.02)
    monkeypatch.setattr(xmlrpc_line, "SLOWEST_BYTES_S", 1e9)
    monkeypatch.setattr(xmlrpc_client, "ANSWER_BYTES", 100_000)
    monkeypatch.setattr(xmlrpc_client, "LEAVE_S", 0.5)


def dribbled(text: bytes) -> Iterator[bytes]:
    """Ever another byte."""
    for byte in itertools.cycle(text):
        time.sleep(0.005)
        yield bytes([byte])


def endless(head: bytes, piece: bytes) -> Iterator[bytes]:
    return itertools.chain([head], itertools.repeat(piece))


def whole(value: object) -> Script:
    return lambda method: [reply(answer(value))]


HOSTILE: dict[str, tuple[Script, str]] = {
    "no XML": (lambda method: [reply(b"<html>please log in</html>")], "not XML-RPC"),
    "no text": (lambda method: [reply(b"\xff\x00\xfe")], "not XML-RPC"),
    "an XML bomb": (lambda method: [reply(BOMB)], "not XML-RPC"),
    "deep XML": (lambda method: [reply(b"<methodResponse>" + b"<value><array><data>" * 20_000)], "not XML-RPC"),
    "a fault": (lambda method: [reply(xmlrpc.client.dumps(xmlrpc.client.Fault(1, "x")).encode())], "not XML-RPC"),
    "nil": (lambda method: [reply(NIL)], "an answer to a p"),
    "a number": (whole(7), "an answer to a p"),
    "a text": (whole("yes"), "an answer to a p"),
    "three values": (whole(["epoch", [], 3]), "an answer to a p"),
    "no epoch": (whole([5, []]), "an answer to a p"),
    "an endless epoch": (whole(["e" * 10_000, []]), "an answer to a p"),
    "messages that are none": (whole(["epoch", 5]), "an answer to a p"),
    "a message without a number": (whole(["epoch", [HELLO]]), "without a number|an answer to a put"),
    "a number that is none": (whole(["epoch", [["1", HELLO]]]), "without a number|an answer to a put"),
    "a message that is none": (whole(["epoch", [[1, "hello"]]]), "no list of bytes|an answer to a put"),
    "a message of nothing": (whole(["epoch", [[1, []]]]), "no list of bytes|an answer to a put"),
    "a redirect": (lambda method: [reply(b"", "302 Found", "Location: http://127.0.0.1:1/")], "HTTP 302"),
    "an error": (lambda method: [reply(b"", "500 " + "x" * 60_000)], "HTTP 500"),
    "a call that is too large": (lambda method: [reply(b"", "413 Too Large")] if method == "poll" else [], "HTTP 413|"),
    "gzip": (lambda method: [reply(gzip.compress(answer(True)), "200 OK", "Content-Encoding: gzip")], "not XML-RPC"),
    "no HTTP": (lambda method: [b"SSH-2.0-OpenSSH_9.6\r\n"], "no answer in HTTP"),
    "nothing": (lambda method: [], "Remote end closed"),
    "a reset": (lambda method: [RESET], "reset"),
    "a reset in the middle": (lambda method: [reply(bytes(5000))[:2000], RESET], "reset"),
    "too many headers": (lambda method: [reply(b"", "200 OK", *["X: y"] * 200)], "no answer in HTTP"),
    "a header without an end": (lambda method: [OK + b"X: " + b"y" * 100_000], "no answer in HTTP"),
    "half of an answer": (lambda method: [reply(answer(True))[:-20]], "not XML-RPC"),
    "a length beyond memory": (lambda method: [OK + b"Content-Length: 9" + b"0" * 30 + b"\r\n\r\nx"], ""),
    "a length that is none": (lambda method: [OK + b"Content-Length: -x\r\n\r\n"], "not XML-RPC"),
    "chunks that are none": (lambda method: [CHUNKED + b"zz\r\n"], "no answer"),
    "an endless body": (lambda method: endless(OK + b"\r\n", bytes(2**20)), "more than [0-9]+ bytes"),
    "endless chunks": (
        lambda method: endless(CHUNKED, b"10000\r\n%s\r\n" % bytes(65536)),
        "more than [0-9]+ bytes",
    ),
    "endless promises": (lambda method: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), LATE),
    "a dribbled head": (lambda method: dribbled(OK + b"X: "), LATE),
    "a dribbled body": (
        lambda method: itertools.chain([OK + b"\r\n"], dribbled(b" ")),
        LATE,
    ),
}  # fmt: skip


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_answer_is_named_and_asked_for_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    script, why = HOSTILE[what]
    server.script = script
    monkeypatch.setattr(xmlrpc_line, "ANSWER_S", 0.3 if why == LATE else ENOUGH_S)
    with contextlib.closing(_dialled(server.url)) as connection:
        connection.send([b"question"])
        eventually(lambda: connection.trouble and all(server.asked[method] > 1 for method in ("put", "poll")))
        assert re.search(why, connection.trouble), connection.trouble
        assert all(thread.is_alive() for thread in connection._threads)
        monkeypatch.setattr(xmlrpc_line, "ANSWER_S", ENOUGH_S)
        server.script = server.honest
        assert connection.receive(ENOUGH_S) == HELLO
        eventually(lambda: not connection._outbox)


def _dialled(url: str) -> XmlRpcConnection:
    found = transport.connect(url, largest_message_bytes=100_000)
    assert isinstance(found, XmlRpcConnection)
    return found


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "error", [OverflowError, MemoryError, UnicodeDecodeError("ascii", b"x", 0, 1, "why"), KeyError]
)
def test_whatever_the_library_makes_of_it_the_threads_go_on(
    server: Server, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """http.client has raised errors of its own and of others in each of its versions."""

    def breaks(response: http.client.HTTPResponse) -> None:
        raise error

    with monkeypatch.context() as broken, contextlib.closing(_dialled(server.url)) as connection:
        broken.setattr(http.client.HTTPResponse, "begin", breaks)
        connection.send([b"question"])
        eventually(lambda: connection.trouble)
        assert "no answer that can be read" in connection.trouble
        broken.undo()
        assert connection.receive(ENOUGH_S) == HELLO


@pytest.mark.parametrize("what", ["no XML", "no HTTP", "nil", "a length beyond memory", "chunks that are none"])
def test_who_tries_it_out_is_told_too(server: Server, what: str) -> None:
    server.script = HOSTILE[what][0]
    if what == "nil":
        try_out(server.url, ENOUGH_S)  # somebody speaks XML-RPC there: more was not asked
        return
    with pytest.raises(ProtocolError):
        try_out(server.url, ENOUGH_S)


@pytest.mark.usefixtures("quick")
def test_an_answer_in_the_open_where_tls_is_expected(server: Server) -> None:
    server.blurts = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with contextlib.closing(_dialled(server.url.replace("http:", "https:"))) as connection:
        eventually(lambda: connection.trouble)
        assert "SSL" in connection.trouble
        assert all(thread.is_alive() for thread in connection._threads)


@pytest.mark.parametrize(
    "value", [["epoch", []], ["epoch", [[0, HELLO]]], False], ids=["nothing", "what was there", "not taken"]
)
def test_who_answers_at_once_that_there_is_nothing_is_not_asked_without_end(
    server: Server, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    monkeypatch.setattr(xmlrpc_client, "SOON_S", 3600.0)
    method = "put" if value is False else "poll"
    server.script, server.closes = lambda asked: [reply(answer(value if asked == method else asked == "put"))], False
    with contextlib.closing(_dialled(server.url)) as connection:
        connection.send([b"question"])
        eventually(lambda: server.asked[method])
        time.sleep(0.2)  # in which thousands would come
        assert server.asked[method] == 1


def test_to_hang_up_waits_for_nobody(server: Server) -> None:
    """Both threads are in the middle of an answer that takes as long as it is allowed to."""
    server.script = lambda method: dribbled(OK + b"X: ")
    connection = _dialled(server.url)
    connection.send([b"question"])
    eventually(lambda: server.asked["put"] and server.asked["poll"])
    began = time.monotonic()
    connection.close()
    assert time.monotonic() - began < xmlrpc_line.ANSWER_S / 2, "a goodbye takes 2 s at most"
    assert not any(thread.is_alive() for thread in connection._threads)


def test_answers_follow_each_other_over_one_connection(server: Server) -> None:
    server.closes = False
    with contextlib.closing(_dialled(server.url)) as connection:
        for _ in range(3):
            connection.send([b"question"])
        eventually(lambda: server.asked["put"] == 3 and server.asked["poll"] > 1)
        assert len(server._lines) == 2
