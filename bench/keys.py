"""What keys cost: throughput with CURVE against bare pyzmq with CURVE, and control messages a second.

`python -m bench keys`. Loops are those of bench/transport.py; what attackers take from a worker is bench/hostile.py.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import zmq

from bench.transport import bare, carried, ours, throughput
from bench.turns import PAIRS, row
from lightning_async.transport import allowed, zeromq
from lightning_async.transport.allowed import Caller
from lightning_async.transport.keys import Key, write_server
from lightning_async.transport.zeromq_curve import new_pair, secure_client

CONTROL_BYTES, CONTROL = 64, 20_000
LEAST_CONTROL_S = 15_000.0


def folder_of(path: Path, *names: str) -> dict[str, Key]:
    """A server's keys in `path`, and keys of its list."""
    server = new_pair()
    write_server(path, server)
    allowed.begin(path)
    keys = {name: Key(name, "worker", new_pair(), server.public) for name in names}
    for name, key in keys.items():
        allowed.allow(path, key.pair.public, Caller(name, "worker"))
    return keys


def keyed(payload: bytes, messages: int, window: int) -> float:
    """As `transport.ours`, with keys."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        key = folder_of(Path(name), "a")["a"]
        listener = stack.enter_context(contextlib.closing(zeromq.listen("tcp://127.0.0.1:0", keys=Path(name))))
        connection = stack.enter_context(contextlib.closing(zeromq.connect(listener.address, key=key)))
        return carried(listener, connection, payload, messages, window)


def bare_curve(payload: bytes, messages: int, window: int) -> float:
    """As `transport.bare`, with CURVE and nobody who asks whose key it is."""
    server, key = new_pair(), new_pair()

    def prepare(dealer: zmq.Socket[bytes], router: zmq.Socket[bytes]) -> None:
        router.curve_server, router.curve_secretkey = True, server.secret
        secure_client(dealer, Key("a", "worker", key, server.public))

    return bare(payload, messages, window, prepare)


def control() -> Iterator[dict[str, Any]]:
    """Each message is answered, so the server reads and writes one of them in the time of one."""
    for name, run in (("transport_64B_messages", ours), ("keys_64B_messages", keyed)):
        rate = median(CONTROL / run(bytes(CONTROL_BYTES), CONTROL, 32) for _ in range(PAIRS))
        rates = rate, LEAST_CONTROL_S, rate / LEAST_CONTROL_S
        yield row(name, "1/s", 1.0, rates, reference_is="the least that it should be; each message is answered")


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    reference_is = "bare ROUTER/DEALER with CURVE, copy=False"
    yield throughput("keys_5MB_messages", 0.8, 40, keyed, bare_curve, reference_is)
    yield from control()


if __name__ == "__main__":
    for measured in rows():
        print(json.dumps(measured), flush=True)
