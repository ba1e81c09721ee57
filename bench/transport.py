"""The TCP transport against bare pyzmq and against XML-RPC, and the checksum against reading: what the wire costs.

A sender keeps a window of messages under way; the receiver, in a thread of its own, answers each by a few bytes. Both
sides run the same loop twice, once over our transport and once over a bare DEALER and ROUTER that do not copy either.
Ours and bare take turns; each value is the median of its turns, the ratio the median over the pairs.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from xmlrpc.client import Binary, ServerProxy
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

import msgpack
import numpy as np
import zmq

from bench.turns import in_turn, row
from lightning_async.transport import Connection, Listener, zeromq
from lightning_async.wire.checksum import checksum
from lightning_async.wire.frames import Envelope, pack, unpack
from lightning_async.wire.messages import Push

Run = Callable[[bytes, int, int], float]  # (payload, messages, window) -> seconds
Prepare = Callable[["zmq.Socket[bytes]", "zmq.Socket[bytes]"], None]


def ours(payload: bytes, messages: int, window: int) -> float:
    with (
        contextlib.closing(zeromq.listen("tcp://127.0.0.1:0")) as listener,
        contextlib.closing(zeromq.connect(listener.address)) as connection,
    ):
        return carried(listener, connection, payload, messages, window)


def carried(listener: Listener, connection: Connection, payload: bytes, messages: int, window: int) -> float:
    """Seconds for `messages` of one payload between two ends of ours."""

    def answer() -> None:
        peer, _ = listener.receive(10.0) or (b"", [])
        listener.send(peer, [b"", b"ok"])

    return timed(lambda: connection.send([b"", payload]), lambda: connection.receive(10.0), answer, messages, window)


def bare(payload: bytes, messages: int, window: int, prepare: Prepare = lambda dealer, router: None) -> float:
    """Two pyzmq sockets and nothing else; `prepare` sets options of theirs before they meet."""
    with contextlib.ExitStack() as stack:  # a context each, as if they were two processes
        router = stack.enter_context(stack.enter_context(zmq.Context()).socket(zmq.ROUTER))
        dealer = stack.enter_context(stack.enter_context(zmq.Context()).socket(zmq.DEALER))
        dealer.linger = router.linger = 0
        prepare(dealer, router)
        dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")

        def answer() -> None:
            peer, *_ = router.recv_multipart(copy=False)
            router.send_multipart([peer, b"", b"ok"])

        def send() -> None:
            dealer.send(b"", zmq.SNDMORE)
            dealer.send(payload, copy=False)

        return timed(send, lambda: dealer.recv_multipart(copy=False), answer, messages, window)


class _OneLine(SimpleXMLRPCRequestHandler):
    """Answers many calls over one connection, so that dialling is no part of what is measured."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1


def xml_rpc(payload: bytes, messages: int, window: int) -> float:
    """The standard library's XML-RPC, which carries bytes as base64 and has one call under way."""
    with SimpleXMLRPCServer(("127.0.0.1", 0), _OneLine, logRequests=False) as server:
        server.register_function(lambda sent: len(sent.data), "put")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with ServerProxy(f"http://127.0.0.1:{server.server_address[1]}") as proxy:
                proxy.put(Binary(payload))
                started = time.perf_counter()
                for _ in range(messages):
                    if proxy.put(Binary(payload)) != len(payload):
                        raise ValueError("XML-RPC lost bytes")
                return time.perf_counter() - started
        finally:
            server.shutdown()
            thread.join()


def timed(
    send: Callable[[], object], receive: Callable[[], object], answer: Callable[[], None], messages: int, window: int
) -> float:
    """Seconds for `messages` messages, after a few that open the line."""
    warm = 2 * window
    receiver = threading.Thread(target=lambda: [answer() for _ in range(warm + messages)])
    receiver.start()
    for number in range(warm + messages):
        if number == warm:
            started = time.perf_counter()
        send()
        if number >= window:
            receive()
    for _ in range(window):
        receive()
    took = time.perf_counter() - started
    receiver.join()
    return took


def throughput(bench: str, floor: float, messages: int, mine: Run, reference: Run, reference_is: str) -> dict[str, Any]:
    """GB/s of messages of 5 MB, four of them under way."""
    payload = bytes(5_000_000)

    def rate(run: Run) -> float:
        return messages * len(payload) / run(payload, messages, 4) / 1e9

    rates = in_turn(lambda: rate(mine), lambda: rate(reference))
    return row(bench, "GB/s", floor, rates, reference_is=reference_is)


def against_xml_rpc() -> dict[str, Any]:
    """The same bytes over XML-RPC: fewer messages of it, since one takes that much longer."""
    payload = bytes(np.random.default_rng(0).bytes(5_000_000))

    def rate(run: Run, messages: int) -> float:
        return messages * len(payload) / run(payload, messages, 4) / 1e9

    rates = in_turn(lambda: rate(ours, 100), lambda: rate(xml_rpc, 8))
    return row("transport_5MB_against_xml_rpc", "GB/s", 20.0, rates, reference_is="xmlrpc of the stdlib, base64")


def small_messages() -> dict[str, Any]:
    def rate(run: Run) -> float:
        return 5000 / run(bytes(100), 5000, 16)

    rates = in_turn(lambda: rate(ours), lambda: rate(bare))
    return row("transport_100B_round_trips", "1/s", 0.4, rates, reference_is="bare ROUTER/DEALER, blocking")


def sums() -> dict[str, Any]:
    vector = np.random.default_rng(0).integers(0, 2**62, 8_000_000)
    view = memoryview(vector).cast("B")

    def rate(run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        return vector.nbytes / (time.perf_counter() - started) / 1e9

    rates = in_turn(lambda: rate(lambda: checksum(view)), lambda: rate(vector.max))
    return row("checksum_64MB", "GB/s", 0.4, rates, reference_is="one read pass (numpy max of int64)")


def headers() -> dict[str, Any]:
    """A Push with its fields checked on both sides, against msgpack of the same map without any check."""
    push = Envelope(7, Push(seq=9, base=4, digest="0" * 32, samples=64, steps=16, round_s=1.5, loss=2.5), (b"",))
    plain = msgpack.unpackb(pack(push)[1][8:])

    def rate(run: Callable[[], object]) -> float:
        started = time.perf_counter()
        for _ in range(3000):
            run()
        return 3000 / (time.perf_counter() - started)

    rates = in_turn(
        lambda: rate(lambda: unpack(pack(push))), lambda: rate(lambda: msgpack.unpackb(msgpack.packb(plain)))
    )
    return row("header_write_and_read", "1/s", 0.05, rates, reference_is="msgpack alone, nothing checked")


def rows() -> Iterator[dict[str, Any]]:
    yield throughput("transport_5MB_messages", 0.9, 100, ours, bare, "bare ROUTER/DEALER, copy=False")
    yield against_xml_rpc()
    yield small_messages()
    yield sums()
    yield headers()


if __name__ == "__main__":
    for measured in rows():
        print(json.dumps(measured), flush=True)
