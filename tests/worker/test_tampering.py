"""Workers that attack, for experiments: refused without the mark; with it, they send something else."""

from __future__ import annotations

import copy

import pytest
import torch
from rounds import flat, model, published

from lightning_async import AsyncOptimizer, AsyncWANStrategy
from lightning_async.attacks import MARK
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.server import ServerThread
from lightning_async.worker.tampering import tampering

ON = {MARK: "1"}


def test_an_attack_needs_the_mark_of_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MARK, raising=False)
    for environment in ({}, {MARK: "0"}, {MARK: ""}):
        with pytest.raises(ConfigError, match=f"set {MARK}=1"):
            tampering("zero()", "a", environment)
    with pytest.raises(ConfigError, match=MARK):
        AsyncWANStrategy(attack="sign_flip(k=10.0)")
    net = model()
    with ServerThread(RunConfig()) as server, pytest.raises(ConfigError, match=MARK):
        AsyncOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, server.address, attack="zero()")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("label_flip(classes=10)", "poisons the data set"),
        ("fast(zero(), speed=10.0)", "only a simulation"),
        ("unheard_of()", "unknown attack"),
    ],
)
def test_what_is_no_change_of_an_update_is_refused(how: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=said):
        tampering(how, "a", ON)
    monkeypatch.setenv(MARK, "1")
    with pytest.raises(ConfigError, match=said):
        AsyncWANStrategy(attack=how)
    assert AsyncWANStrategy(attack="sign_flip(k=2.0)")._attack == "sign_flip(k=2.0)"


def test_its_memory_and_its_random_numbers_go_on_from_update_to_update() -> None:
    own = torch.randn(50)
    kept = own.clone()
    noise, other = tampering("random(k=2.0)", "a", ON), tampering("random(k=2.0)", "b", ON)
    first, second = noise(own), noise(own)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other(own)), "two attackers do not give each other away"
    assert torch.equal(first, tampering("random(k=2.0)", "a", ON)(own)), "but the same worker repeats itself"
    replay = tampering("stale_replay(delay=1)", "a", ON)
    assert torch.equal(replay(own), own)
    assert torch.equal(replay(own + 1), own)
    assert torch.equal(replay(own + 2), own + 2)
    assert torch.equal(own, kept)


@pytest.mark.parametrize("submit", ["update", "gradient"])
def test_what_arrives_is_the_attack_on_what_was_computed(submit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, "1")
    moved = []
    for how in (None, "sign_flip(k=10.0)"):
        net = model()
        start = copy.deepcopy(flat(net))
        with ServerThread(RunConfig(submit=submit, local_steps=1)) as server:  # type: ignore[arg-type]
            inner = torch.optim.SGD(net.parameters(), lr=0.1)
            with AsyncOptimizer(inner, net, server.address, attack=how) as optimizer:
                net(torch.ones(2, 3)).sum().backward()
                optimizer.step()
                optimizer.engine.flush()
                moved.append(published(server) - start)
    assert moved[0].norm() > 0.1
    assert torch.allclose(moved[1], -10 * moved[0], rtol=1e-4, atol=1e-6)
