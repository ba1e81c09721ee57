"""Outer optimizers in a run: what the coordinator gives them is what their formulas ask for."""

from __future__ import annotations

import pytest
import torch
from room import LAYOUT, START, Room

from lightning_async.outer import OUTERS, Update, bind, outer

SIZES = [entry.size for entry in LAYOUT.parameters]
D = len(START)


def updates(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(D, generator=generator) * 0.1 for _ in range(count)]


@pytest.mark.parametrize("name", OUTERS)
def test_a_run_steps_as_its_optimizer_does(name: str) -> None:
    """Every other update is one version old and counts for half of a fresh one."""
    room = Room(outer=name, weight="polynomial(a=1.0)", workers=3).begin("a", "b", "c")
    made, x = bind(outer(name), SIZES, 3), START.clone()
    state = made.init(D)
    for i, u in enumerate(updates(12)):
        age = 1 if i % 2 else 0
        weight = room.run.rules.weight.of(age)
        assert weight == 1.0 if not age else weight <= 0.5
        assert room.push("abc"[i % 3], u, base=room.run.version - age).accepted
        state = made.step(x, Update(u, weight, ((age, 1.0),)), state)
        assert torch.allclose(room.parameters, x, atol=1e-6)
    assert {key.removeprefix("outer/") for key in room.run.stepper.state()} == set(state)  # type: ignore[union-attr]


def test_of_several_updates_each_ages_share_is_told() -> None:
    outer = "delay_compensated(sgd(lr=1.0), lam=1.0, decay=None)"
    room = Room(outer=outer, quorum=2, weight="constant").begin("a", "b")
    first, second, third = updates(3)
    for name in "ab":
        room.push(name, first)
    before = room.parameters.clone()
    room.push("a", second, base=1, samples=3)
    room.push("b", third, base=0, samples=1)
    u = (3 * second + third) / 4
    assert torch.allclose(room.parameters, before - (u + u * u * 0.25 * (before - START)), atol=1e-6)


def test_momentum_advances_once_for_a_whole_quorum() -> None:
    room = Room(outer="nesterov(lr=1.0, momentum=0.5)", quorum=3).begin("a", "b", "c")
    us = updates(3)
    for name, u in zip("abc", us, strict=True):
        room.push(name, u)
    assert room.run.stepper is not None
    mean = torch.stack(us).mean(dim=0)
    assert torch.allclose(room.run.stepper.state()["outer/momentum"], mean, atol=1e-6)
    assert torch.allclose(room.parameters, START - 1.5 * mean, atol=1e-6)
