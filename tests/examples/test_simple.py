"""The simple client trains: alone, beside others of its kind and beside a worker of ours, whatever bad clients do."""

from __future__ import annotations

import ast
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import zmq
from eventually import ENOUGH_S, eventually

from examples.simple import client
from lightning_async import AsyncOptimizer
from lightning_async.config import RunConfig
from lightning_async.server import ServerThread

ROOT = Path(__file__).parents[2]
RUN = RunConfig(local_steps=20, total_steps=1000, quorum=1, workers=2)


def test_it_imports_nothing_of_ours():
    tree = ast.parse((ROOT / "examples/simple/client.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    standard = {"__future__", "hashlib", "json", "sys", "time", "typing", "uuid", "zlib"}
    assert names - standard == {"msgpack", "numpy", "zmq"}


def test_its_checksum_and_digest_are_the_protocols():
    from lightning_async.layout import read_manifest
    from lightning_async.wire.checksum import checksum

    for length in (0, 1, 7, 8, 9, 1000):
        frame = os.urandom(length)
        assert client.checksum(frame) == checksum(frame)
    assert read_manifest(client.TENSORS).digest == client.DIGEST


def test_two_of_them_train_a_model_while_a_wrong_client_sends_garbage(monkeypatch):
    found, both, ask = [], threading.Barrier(2), client.Client.ask

    def asked(self, name, payload=(), **fields):
        """Nobody pushes before both are in: one alone would be through before the other one comes."""
        if fields.get("seq") == 1:
            both.wait(ENOUGH_S)
        return ask(self, name, payload, **fields)

    monkeypatch.setattr(client.Client, "ask", asked)
    with ServerThread(RUN) as server, Garbage(server.address) as garbage:
        threads = [threading.Thread(target=lambda i=i: found.append(client.train(server.address, i))) for i in (0, 1)]
        eventually(lambda: server._service.damaged >= 3)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        run = server.coordinator.run
        assert run.steps_total >= RUN.total_steps
        assert len(run.members.workers()) == 0
        assert garbage.answers == 0, "nothing that could be read"
    assert len(found) == 2
    for parameters in found:
        assert np.abs(parameters - client.TRUTH).max() < 1e-3


def test_it_trains_beside_a_worker_of_ours():
    module = torch.nn.Module()
    module.w, module.b = torch.nn.Parameter(torch.zeros(4, 1)), torch.nn.Parameter(torch.zeros(1))
    stopped = threading.Event()
    with ServerThread(RUN) as server:
        optimizer = AsyncOptimizer(torch.optim.SGD(module.parameters(), lr=0.05), module, server.address)
        found = []
        thread = threading.Thread(target=lambda: (found.append(client.train(server.address)), stopped.set()))
        thread.start()
        generator, truth = torch.Generator().manual_seed(5), torch.from_numpy(client.TRUTH)
        with optimizer:
            while not (stopped.is_set() or optimizer.stop_asked):
                x = torch.randn(16, 4, generator=generator)
                optimizer.zero_grad()
                (x @ module.w + module.b - (x @ truth[:4, None] + truth[4])).square().mean().backward()
                optimizer.step()
        thread.join()
        assert server.coordinator.run.steps_total >= RUN.total_steps
    assert np.abs(found[0] - client.TRUTH).max() < 0.05


@pytest.mark.parametrize("name", ["Push", "Init"])
def test_a_refusal_ends_it_with_the_reason(name):
    with ServerThread(RUN) as server:
        stranger = client.Client(server.address)
        with pytest.raises(SystemExit, match=rf"{name} refused: unknown_worker"):
            stranger.ask(name, (bytes(20), b""), seq=1, base=0, digest=client.DIGEST)
        stranger.close()


class Garbage:
    """A REQ client that speaks no protocol: noise, half a header, a header of another message, again and again."""

    def __init__(self, address: str) -> None:
        self._address, self._stop = address, threading.Event()
        self.sent = self.answers = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Garbage:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(ENOUGH_S)

    def _run(self) -> None:
        with zmq.Context() as context:
            while not self._stop.wait(0.01):
                noise = [[os.urandom(50)], [b"LA\x01\x00"], [b"LA\x01\x00" + bytes(4) + b"\x80", bytes(10_000)]]
                with context.socket(zmq.REQ) as socket:
                    socket.setsockopt(zmq.LINGER, 0)
                    socket.setsockopt(zmq.RCVTIMEO, 20)
                    socket.connect(self._address)
                    socket.send_multipart(noise[self.sent % len(noise)])
                    self.sent += 1
                    try:
                        socket.recv_multipart()
                        self.answers += 1
                    except zmq.Again:
                        continue
