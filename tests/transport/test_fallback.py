"""Changing over to another way when nobody answers, and back at the next rejoin."""

from __future__ import annotations

import logging
from contextlib import closing

import pytest
import torch
from eventually import ENOUGH_S, eventually
from ports import free_address, nobody

from lightning_async import AsyncOptimizer, transport
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.server import ServerThread
from lightning_async.transport import fallback, memory
from lightning_async.transport.fallback import Fallback
from lightning_async.worker.line import Line


class Ways:
    """Two listeners in memory, a connection that may use either, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.first, self.second = memory.listen(), memory.listen()
        self.now = 0.0
        self.connection = Fallback(
            lambda: memory.connect(self.first.address),
            lambda: memory.connect(self.second.address),
            ("tcp://first", "http://second"),
            patience_s=8.0,
            clock=lambda: self.now,
        )

    def close(self) -> None:
        for end in (self.connection, self.first, self.second):
            end.close()


@pytest.fixture
def ways():
    made = Ways()
    yield made
    made.close()


def test_without_an_answer_it_changes_over_and_says_again_what_it_has_said(ways, caplog):
    ways.connection.send([b"hello"])
    ways.now = 7.9
    assert ways.connection.receive(0.0) is None
    assert ways.second.receive(0.0) is None
    ways.now = 8.0
    with caplog.at_level(logging.WARNING):
        assert ways.connection.receive(0.0) is None
    assert "no answer from tcp://first" in caplog.text
    assert "going on over http://second" in caplog.text
    peer, frames = ways.second.receive(0.0)
    assert bytes(frames[0]) == b"hello"
    assert ways.second.send(peer, [b"welcome"])
    assert bytes(ways.connection.receive(0.0)[0]) == b"welcome"
    assert ways.connection.traffic().sent_bytes == 10, "both ways count"


def test_with_an_answer_it_stays(ways):
    ways.connection.send([b"hello"])
    peer, _ = ways.first.receive(0.0)
    ways.first.send(peer, [b"welcome"])
    assert bytes(ways.connection.receive(0.0)[0]) == b"welcome"
    ways.now = 1e6
    assert ways.connection.receive(0.0) is None
    ways.connection.send([b"more"])
    assert ways.second.receive(0.0) is None
    assert bytes(ways.first.receive(0.0)[1][0]) == b"more"


def test_the_next_dial_begins_with_the_first_way_again(monkeypatch):
    monkeypatch.setattr(fallback, "PATIENCE_S", 0.1)
    address = free_address()
    with closing(transport.listen("http://127.0.0.1:0")) as second:
        line = Line(fallback=second.address)
        with closing(line.connect(address)) as connection:
            connection.send([b"hello"])
            assert eventually(lambda: connection.receive(0.05) or second.receive(0.0))
        monkeypatch.setattr(fallback, "PATIENCE_S", ENOUGH_S)
        with closing(transport.listen(address)) as first, closing(line.connect(address)) as connection:
            connection.send([b"hello"])
            peer, _ = first.receive(ENOUGH_S)
            assert first.send(peer, [b"welcome"])
            assert eventually(lambda: connection.receive(0.05))
            assert second.receive(0.0) is None


@pytest.mark.parametrize("choice", [None, "lan"])
def test_a_worker_trains_over_http_where_nothing_else_passes(choice, monkeypatch):
    monkeypatch.setattr(fallback, "PATIENCE_S", 0.2)
    run = RunConfig(local_steps=2, beat_s=0.2)
    with nobody() as closed, ServerThread(run, "tcp://127.0.0.1:0,http://127.0.0.1:0") as server:
        http = server._service._listener.addresses[1]
        module = torch.nn.Linear(3, 1)
        with AsyncOptimizer(
            torch.optim.SGD(module.parameters(), lr=0.1), module, closed, link=choice, fallback=http
        ) as worker:
            for _ in range(10):
                worker.zero_grad()
                module(torch.ones(2, 3)).square().sum().backward()
                worker.step()
        assert server.coordinator.run.steps_total == 10


def test_a_worker_with_a_key_is_not_driven_out_of_encryption():
    with pytest.raises(ConfigError, match="leave one out"):
        Line(fallback="http://127.0.0.1:80").forbid_fallback()
    Line().forbid_fallback()
