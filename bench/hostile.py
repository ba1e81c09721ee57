"""What attackers take from an honest worker of a server with keys: its round beside each of them against one alone.

`python -m bench hostile`. A round is as rounds are: a second of computing, which is somewhere else and costs nothing
here, then 4 MB of update up, its receipt, and the new parameters down. Server, worker and attacker are processes. An
attacker's own computing is another machine's in truth, so it runs once at idle priority, which leaves the server what
the attack costs the server; and once at the same priority, which shows two cores being shared. Both are paired with
rounds without any attack, in turns. Each attack comes with a key that was never put out before.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.keys import folder_of
from bench.turns import row
from lightning_async import AsyncOptimizer
from lightning_async.transport.keys import Key, write_key

THINK_S = 1.0
SIDE = 1024
TURNS, ROUNDS = 3, 3
MOST = 1.1
IDLE, EQUAL = "idle", "equal"
SERVER = """
import sys, time
from pathlib import Path
from lightning_async.config import RunConfig
from lightning_async.server import ServerThread
with ServerThread(RunConfig(local_steps=1), keys=Path(sys.argv[1])) as server:
    print(server.address, flush=True)
    time.sleep(3600)
"""
HEAD = """
import contextlib, itertools, os, socket, sys, time
from pathlib import Path
from lightning_async.errors import AsyncWANError, NetworkError, RefusedError
from lightning_async.transport import connect
from lightning_async.transport.keys import read_key
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, sealed
address, key = sys.argv[1], read_key(Path(sys.argv[2]))
if sys.argv[3] == "idle":
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
host, _, port = address.removeprefix("tcp://").rpartition(":")
place = host, int(port)
print("ready", flush=True)
def say(make, pause_s=0.0):
    line = connect(address, key=key)
    for number in itertools.count(1):
        try:
            line.send(make(number))
            line.receive(0.0)
        except NetworkError:
            time.sleep(0.001)
        except RefusedError:
            time.sleep(0.05)
        time.sleep(pause_s)
"""
ATTACKS = {
    "flood_of_no_messages": "say(lambda number: [b'', b'not a header', bytes(100_000)])",
    "flood_of_requests": "say(lambda number: pack(Envelope(number, m.Status())))",
    "requests_just_within_the_rate": "say(lambda number: pack(Envelope(number, m.Status())), 1 / 1900)",
    "oversized_messages": "say(lambda number: [b'', bytes(64 * 2**20)], 0.02)",
    "bombs_of_headers": "bomb = sealed(b'\\x91' * 4_000_000)\nsay(lambda number: [b'', bomb], 0.005)",
    "flood_in_plain_text": """
while True:
    with contextlib.suppress(OSError), socket.create_connection(place, 5.0) as line:
        for _ in range(100):
            line.sendall(bytes(65536))
""",
    "slow_loris": """
lines = []
for step in itertools.count():
    for line in lines:
        with contextlib.suppress(OSError):
            line.sendall(b"\\xff" if step == 0 else b"\\0")
    lines = [line for line in lines if step % 50] or [socket.create_connection(place, 5.0) for _ in range(250)]
    time.sleep(0.05)
""",
    "10000_connections": """
lines = []
while True:
    with contextlib.suppress(OSError):
        lines.append(socket.create_connection(place, 5.0))
        lines[-1].sendall(bytes(10))
    if len(lines) == 1_000:
        lines.pop(0).close()
""",
}


class Honest:
    """A worker whose computing costs nothing here."""

    def __init__(self, address: str, key: Path) -> None:
        self._model = torch.nn.Linear(SIDE, SIDE, bias=False)
        sgd = torch.optim.SGD(self._model.parameters(), lr=1e-6)
        self._model.weight.grad = torch.ones(SIDE, SIDE)
        self.optimizer = AsyncOptimizer(sgd, self._model, address, key=key)

    def rounds(self) -> list[float]:
        """Seconds of each; when one is over its update is accepted, and the parameters are the newest."""
        taken = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            time.sleep(THINK_S)
            self.optimizer.step()
            self.optimizer.engine.flush()
            taken.append(time.perf_counter() - began)
        return taken


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    attacks = os.environ.get("BENCH_ATTACKS", " ".join(ATTACKS)).split()
    for name in attacks:
        yield from beside(name)


def beside(attack: str) -> Iterator[dict[str, Any]]:
    """A row for each priority."""
    names = [f"eve{number}" for number in range(2 * TURNS)]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        keys = folder_of(Path(folder) / "server", "honest", *names)
        files = {name: _written(Path(folder), name, key) for name, key in keys.items()}
        address = stack.enter_context(_started(SERVER, str(Path(folder) / "server")))
        honest = Honest(address, files["honest"])
        stack.enter_context(honest.optimizer)
        honest.rounds()
        taken: dict[str, list[float]] = {"": [], IDLE: [], EQUAL: []}
        fresh = iter(names)
        for priority in itertools.chain.from_iterable([["", IDLE, EQUAL]] * TURNS):
            words = (HEAD + ATTACKS[attack], address, str(files[next(fresh)]), priority) if priority else ()
            with _started(*words) if words else contextlib.nullcontext():
                taken[priority].append(median(honest.rounds()))
    for priority in (IDLE, EQUAL):
        ratio = median(a / b for a, b in zip(taken[priority], taken[""], strict=True))
        rates = median(taken[priority]), median(taken[""]), ratio
        says = {"lower": True, "reference_is": "the same worker's rounds, no attack"}
        yield row(f"hostile_round_beside_{attack}_at_{priority}_priority", "s", MOST, rates, **says)


def _written(folder: Path, name: str, key: Key) -> Path:
    write_key(folder / f"{name}.key", key)
    return folder / f"{name}.key"


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


if __name__ == "__main__":
    for measured in rows():
        print(json.dumps(measured), flush=True)
