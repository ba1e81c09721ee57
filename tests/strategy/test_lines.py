"""`link=`: everything of a worker goes over a line that is worse than the real one, and the training is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eventually import eventually
from models import STEPS, Net, fit, furthest, state
from test_callbacks import published

from lightning_async import AsyncOptimizer, AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.server import ServerThread
from lightning_async.transport import zeromq
from lightning_async.transport.shaping import Proxy
from lightning_async.worker import line

INT8 = "int8(block=256)"


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> list[Proxy]:
    """Those that a test's workers have started."""
    made: list[Proxy] = []

    def noted(*args: Any, **options: Any) -> Proxy:
        made.append(Proxy(*args, **options))
        return made[-1]

    monkeypatch.setattr(line, "Proxy", noted)
    return made


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every address that a socket of this process has dialled."""
    found: set[str] = set()
    plain = zeromq.connect

    def noted(url: str, **options: Any) -> Any:
        found.add(url)
        return plain(url, **options)

    monkeypatch.setattr(zeromq, "connect", noted)
    return found


@pytest.mark.parametrize("choice", ["wan_good", "wan_good(cuts=cuts(at_mb=(0.002, 0.004)))"])
def test_a_fit_over_a_line_learns_what_is_published(choice: str, proxies: list[Proxy]) -> None:
    with ServerThread(RunConfig(local_steps=2, beat_s=0.2)) as server:
        strategy = AsyncWANStrategy(server.address, link=choice)
        module, _ = fit(Net, strategy, max_epochs=3)
        run = server.coordinator.run
        assert run.steps_total == 3 * STEPS
        assert furthest(published(server, module), state(module)) == 0.0
        (proxy,) = proxies
        assert proxy.carried_bytes(up=True) > 500 * 3 * STEPS / 2
        assert proxy.cuts == (2 if "cuts" in choice else 0)
        eventually(lambda: not proxy._thread.is_alive())


def test_an_embedded_server_is_reached_over_the_line_too(proxies: list[Proxy]) -> None:
    strategy = AsyncWANStrategy(local_steps=3, link="lan")
    fit(Net, strategy)
    (proxy,) = proxies
    assert proxy.carried_bytes(up=False) > 0
    assert strategy.report()["config"]["compression"] == INT8  # as for any other network


def test_a_plain_loop_has_one_as_well_and_all_that_it_dials_goes_over_it(
    proxies: list[Proxy], dialled: set[str]
) -> None:
    with ServerThread(RunConfig(local_steps=1, quorum=2)) as server:
        module = torch.nn.Linear(3, 1)
        with AsyncOptimizer(torch.optim.SGD(module.parameters()), module, server.address, link="lan") as optimizer:
            for _ in range(4):
                optimizer.zero_grad()
                module(torch.ones(2, 3)).sum().backward()
                optimizer.step()
    (proxy,) = proxies
    assert dialled == {proxy.address}
    assert proxy.carried_bytes(up=True) > 0
    assert "0 connections" in repr(proxy)


def test_without_a_link_there_is_no_proxy(proxies: list[Proxy]) -> None:
    with ServerThread(RunConfig(local_steps=2)) as server:
        fit(Net, AsyncWANStrategy(server.address))
    assert proxies == []
