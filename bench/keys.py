"""What keys cost: throughput with CURVE against bare pyzmq with CURVE, control messages a second, and what a flood
takes from an honest worker beside it.

`python -m bench keys`. Loops and pairs are those of bench/transport.py. The flood comes from a process of its own,
which has a key of the list and sends what is no message as fast as it can. On a machine of two cores that takes one of
them from everybody, whatever the server does; so the reference is the same worker while the same is done to another
server of this machine, and `alone` says how long a round takes when nothing is.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import zmq

from bench.transport import bare, carried, ours, throughput
from bench.turns import PAIRS, row
from lightning_async import AsyncOptimizer
from lightning_async.config import RunConfig
from lightning_async.server import ServerThread
from lightning_async.transport import allowed, zeromq
from lightning_async.transport.allowed import Caller
from lightning_async.transport.keys import Key, write_key, write_server
from lightning_async.transport.zeromq_curve import new_pair, secure_client

CONTROL_BYTES, CONTROL = 64, 20_000
LEAST_CONTROL_S = 15_000.0
FLOOD = """
import sys, time
from pathlib import Path
from lightning_async.errors import NetworkError, RefusedError
from lightning_async.transport import connect
from lightning_async.transport.keys import read_key
line = connect(sys.argv[1], key=read_key(Path(sys.argv[2])))
print("ready", flush=True)
while True:
    try:
        line.send([b"", b"not a header", bytes(100_000)])
    except NetworkError:
        time.sleep(0.001)
    try:
        line.receive(0.0)
    except RefusedError:
        time.sleep(0.1)
"""

BYSTANDER = """
import sys, time
from pathlib import Path
from lightning_async.config import RunConfig
from lightning_async.server import ServerThread
with ServerThread(RunConfig(), keys=Path(sys.argv[1])) as server:
    print(server.address, flush=True)
    time.sleep(600)
"""
MANY = """
import contextlib, socket, sys, time
host, _, port = sys.argv[1].removeprefix("tcp://").rpartition(":")
lines = []
print("ready", flush=True)
for _ in range(10_000):
    with contextlib.suppress(OSError):
        lines.append(socket.create_connection((host, int(port)), timeout=5.0))
        lines[-1].sendall(bytes(10))
    if len(lines) == 1_000:
        lines.pop(0).close()
print("done", flush=True)
time.sleep(600)
"""


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


def beside(what: str, script: str) -> dict[str, Any]:
    """Rounds of one honest worker, beside what `script` does to its server and to another one, in turns."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        keys = folder_of(Path(name) / "server", "honest", "eve")
        for owner, key in keys.items():
            write_key(Path(name) / f"{owner}.key", key)
        config = RunConfig(local_steps=16)
        server = stack.enter_context(ServerThread(config, keys=Path(name) / "server"))
        model = torch.nn.Linear(512, 512)
        sgd = torch.optim.SGD(model.parameters(), lr=1e-4)
        optimizer = stack.enter_context(AsyncOptimizer(sgd, model, server.address, key=Path(name) / "honest.key"))
        with _started(BYSTANDER, str(Path(name) / "server")) as other:
            taken: dict[str, list[float]] = {"": [], other: [], server.address: []}
            for address in [*taken] * PAIRS:
                with _started(script, address, str(Path(name) / "eve.key")) if address else contextlib.nullcontext():
                    taken[address].append(_rounds(model, optimizer))
    alone, elsewhere, here = taken.values()
    rates = median(here), median(elsewhere), median(a / b for a, b in zip(here, elsewhere, strict=True))
    more = {"alone": float(f"{median(alone):.4g}"), "lower": True}
    return row(f"keys_round_beside_{what}", "s", 1.1, rates, **more, reference_is="the same done to another server")


def _rounds(model: torch.nn.Module, optimizer: AsyncOptimizer, times: int = 12) -> float:
    """The median time of a round, its update accepted."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        for _ in range(16):
            optimizer.zero_grad()
            model(torch.ones(64, 512)).square().mean().backward()
            optimizer.step()
        optimizer.engine.flush()
        taken.append(time.perf_counter() - began)
    return median(taken)


@contextlib.contextmanager
def _started(script: str, *words: str) -> Iterator[str]:
    """What a process of its own says first; it ends with the block."""
    process = subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    reference_is = "bare ROUTER/DEALER with CURVE, copy=False"
    yield throughput("keys_5MB_messages", 0.8, 40, keyed, bare_curve, reference_is)
    yield from control()
    yield beside("a_flood", FLOOD)
    yield beside("10000_connections_of_one_address", MANY)


if __name__ == "__main__":
    for measured in rows():
        print(json.dumps(measured), flush=True)
