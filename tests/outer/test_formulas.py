"""Outer optimizers against the same formulas computed naively, against torch's own, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import formulas
import pytest
import torch
from formulas import Naive

from lightning_async.errors import ConfigError
from lightning_async.outer import Update, bind, outer
from lightning_async.outer.direction import Turn

SIZES = (30, 1, 19)
D = sum(SIZES)
AGES = (0, 3, 1, 0, 9, 2)
HELOCO = {"c_ok": 0.2, "k_s": 0.5, "k_d": 1.0, "kappa": 3.0, "beta_max": 0.5}

NAIVE: dict[str, Callable[[], Naive]] = {
    "sgd(lr=0.3)": lambda: formulas.sgd(0.3),
    "nesterov(lr=0.7, momentum=0.9)": lambda: formulas.nesterov(0.7, 0.9),
    "delayed_nesterov(lr=0.7, momentum=0.9)": lambda: formulas.delayed_nesterov(0.7, 0.9, 4, 0.0),
    "delayed_nesterov(lr=0.7, momentum=0.8, buffer=3, c=0.2)": lambda: formulas.delayed_nesterov(0.7, 0.8, 3, 0.2),
    "look_ahead(lr=0.6, momentum=0.8)": lambda: formulas.look_ahead(0.6, 0.8, 1),
    "look_ahead(lr=0.6, momentum=0.8, steps=3)": lambda: formulas.look_ahead(0.6, 0.8, 3),
    "heloco(lr=0.7, momentum=0.9)": lambda: formulas.heloco(0.7, 0.9, SIZES, HELOCO),
    "heloco(k_s=3.0, k_d=2.0, kappa=0.1)": lambda: formulas.heloco(
        0.7, 0.9, SIZES, HELOCO | {"k_s": 3.0, "k_d": 2.0, "kappa": 0.1}
    ),
    "adam(lr=0.05, beta1=0.8, beta2=0.9)": lambda: formulas.adam(0.05, 0.8, 0.9, 1e-8),
    "age_gated_adam(lr=0.05, eps=0.001)": lambda: formulas.adam(0.05, 0.9, 0.99, 1e-3),
    "delay_compensated(lam=2.0, keep=4)": lambda: formulas.delay_compensated(formulas.sgd(1.0), 2.0, 0.95, 4),
    "delay_compensated(nesterov(lr=0.5, momentum=0.5), lam=0.3, decay=None)": lambda: formulas.delay_compensated(
        formulas.nesterov(0.5, 0.5), 0.3, None, 8
    ),
}  # fmt: skip


def updates(count: int = 24) -> list[torch.Tensor]:
    """Pseudo-gradients that sometimes turn round, so that cosines of every kind occur."""
    generator = torch.Generator().manual_seed(0)
    drift = torch.randn(D, generator=generator)
    return [(torch.randn(D, generator=generator) + (2.0 if i % 5 else -2.0) * drift) * 0.1 for i in range(count)]


@pytest.mark.parametrize("text", NAIVE)
def test_they_equal_a_naive_computation(text: str) -> None:
    made, naive = bind(outer(text), SIZES, 4), NAIVE[text]()
    ours, state = torch.linspace(-1, 1, D), made.init(D)
    theirs, memory = ours.double().tolist(), dict[str, Any]()
    for i, u in enumerate(updates()):
        age = AGES[i % len(AGES)]
        scale = 1.0 if "compensated" in text else 0.5 + 0.1 * (i % 3)
        state = made.step(ours, Update(u, scale, ((age, 1.0),)), state)
        theirs = naive(theirs, (u.double() * scale).tolist(), age, memory)
    assert torch.allclose(ours.double(), torch.tensor(theirs, dtype=torch.float64), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        ("sgd(lr=0.3)", "SGD", {"lr": 0.3}),
        ("nesterov(lr=0.7, momentum=0.9)", "SGD", {"lr": 0.7, "momentum": 0.9, "nesterov": True}),
        ("nesterov(lr=0.5, momentum=0.0)", "SGD", {"lr": 0.5}),
        ("delayed_nesterov(lr=0.7, buffer=1)", "SGD", {"lr": 0.7, "momentum": 0.9, "nesterov": True}),
        ("adam(lr=0.1, beta2=0.999)", "Adam", {"lr": 0.1}),
        ("age_gated_adam(lr=0.1, beta2=0.999)", "Adam", {"lr": 0.1}),
        ("torch_optimizer(name='RMSprop', lr=0.1, momentum=0.5)", "RMSprop", {"lr": 0.1, "momentum": 0.5}),
        ("torch_optimizer(name='AdamW', lr=0.1, betas=[0.5, 0.9])", "AdamW", {"lr": 0.1, "betas": (0.5, 0.9)}),
        ("torch_optimizer('SGD', lr=0.1)", "SGD", {"lr": 0.1}),
    ],
)
def test_they_equal_torch(text: str, name: str, settings: dict[str, Any]) -> None:
    ours, theirs = torch.ones(D), torch.nn.Parameter(torch.ones(D))
    made, optimizer = outer(text), getattr(torch.optim, name)([theirs], **settings)
    state = made.init(D)
    for u in updates():
        state = made.step(ours, Update(u), state)
        theirs.grad = u.clone()
        optimizer.step()
    assert torch.allclose(ours, theirs.detach(), atol=1e-4, rtol=1e-5)


def test_a_buffer_of_delayed_nesterov_is_one_nesterov_step_along_the_mean() -> None:
    delayed, plain = outer("delayed_nesterov(lr=0.7, buffer=6)"), outer("nesterov(lr=0.7)")
    a, b = torch.zeros(D), torch.zeros(D)
    left, right = delayed.init(D), plain.init(D)
    made = updates(24)
    for i in range(0, 24, 6):
        for u in made[i : i + 6]:
            left = delayed.step(a, Update(u), left)
        right = plain.step(b, Update(torch.stack(made[i : i + 6]).mean(dim=0)), right)
        assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(left["momentum"], right["momentum"], atol=1e-5)


def test_momentum_moves_only_on_the_boundary() -> None:
    made = outer("delayed_nesterov(buffer=3)")
    x, state = torch.zeros(D), made.init(D)
    for i, u in enumerate(updates(9), start=1):
        before = state["momentum"].clone()
        state = made.step(x, Update(u), state)
        assert torch.equal(before, state["momentum"]) == bool(i % 3)


def test_the_delayed_buffer_is_the_number_of_workers_unless_given() -> None:
    u = torch.ones(D)
    for text, workers, share in (("delayed_nesterov(lr=1.0)", 8, 8), ("delayed_nesterov(lr=1.0, buffer=2)", 8, 2)):
        x, made = torch.zeros(D), bind(outer(text), SIZES, workers)
        made.step(x, Update(u), made.init(D))
        assert torch.allclose(x, -u / share)


def test_workers_start_where_the_momentum_leads() -> None:
    """After a step from rest: x = -lr (1 + mu (1 - mu)) u, and k = lr mu times m = (1 - mu) u further."""
    made, x, u = outer("look_ahead(lr=0.5, momentum=0.8)"), torch.zeros(D), torch.ones(D)
    made.step(x, Update(u), made.init(D))
    assert torch.allclose(x, -0.5 * (1 + 0.8 * 0.2) * u - 0.5 * 0.8 * 0.2 * u)


def test_an_update_along_the_momentum_is_kept_and_one_against_it_is_shortened_and_one_across_is_turned() -> None:
    turn = Turn(**HELOCO)
    m, u = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])
    assert turn.of(1.0, 4.0, 1.9) == (1.0, 0.0)
    keep, pull = turn.of(1.0, 4.0, -2.0)
    assert (keep, pull) == (1.0, pytest.approx(0.5 / 7 / 2))  # conf = 1 / 7, beta = k_s conf, times |u| / |m|
    keep, pull = turn.of(1.0, 4.0, 0.0)
    turned = keep * u + pull * m
    assert float(turned.norm()) == pytest.approx(1.0)
    assert float(turned @ m) > 0
    assert turn.of(0.0, 4.0, 0.0) == turn.of(1.0, 0.0, 0.0) == (1.0, 0.0)


def test_heloco_looks_at_each_tensor_by_itself() -> None:
    made = bind(outer("heloco"), (2, 2), 1)
    one = bind(outer("heloco"), (4,), 1)
    first, second = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    ends = []
    for member in (made, one):
        x, state = torch.zeros(4), member.init(4)
        for u in (first, second):
            state = member.step(x, Update(u), state)
        ends.append(state["momentum"])
    assert float(ends[0][0]) == pytest.approx(0.19)
    assert not torch.allclose(ends[0], ends[1])


def test_ages_of_several_updates_are_compensated_by_their_share() -> None:
    u, start = torch.full((D,), 0.5), torch.zeros(D)
    made = outer("delay_compensated(lam=1.0, decay=None)")
    x, state = start.clone(), made.init(D)
    state = made.step(x, Update(u), state)
    before = x.clone()
    made.step(x, Update(u, 1.0, ((0, 0.75), (1, 0.25))), state)
    assert torch.allclose(x, before - (u + u * u * 0.25 * (before - start)))


def test_the_gate_is_the_weight_of_that_name() -> None:
    made = outer("age_gated_adam(alpha=0.2, cutoff=10.0)")
    assert made.weight == "cosine_gate(alpha=0.2, cutoff=10.0)"
    assert outer("delay_compensated(age_gated_adam())").weight == outer("age_gated_adam").weight
    assert outer("adam").weight == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sgd(lr=0)", "outer lr"),
        ("sgd(lr=-1.0)", "outer lr"),
        ("nesterov(lr=1e999)", "outer lr"),
        ("nesterov(momentum=1.0)", "outer momentum"),
        ("look_ahead(momentum=-0.1)", "outer momentum"),
        ("look_ahead(steps=0)", "outer steps"),
        ("delayed_nesterov(buffer=0)", "outer buffer"),
        ("delayed_nesterov(buffer=True)", "outer buffer"),
        ("delayed_nesterov(buffer=4, c=0.3)", "outer c"),
        ("heloco(c_ok=2.0)", "outer c_ok"),
        ("heloco(kappa=-1.0)", "outer kappa"),
        ("adam(beta2=1.0)", "outer beta2"),
        ("adam(eps=-1.0)", "outer eps"),
        ("age_gated_adam(cutoff=0)", "outer cutoff"),
        ("age_gated_adam(alpha=-1.0)", "outer alpha"),
        ("delay_compensated(lam=-1.0)", "outer lam"),
        ("delay_compensated(decay=1.0)", "outer decay"),
        ("delay_compensated(keep=1)", "outer keep"),
        ("delay_compensated(3)", "expected an outer optimizer"),
        ("delay_compensated(delay_compensated())", "without delay compensation"),
        ("torch_optimizer(name='LBFGS')", "expected one of SGD, "),
        ("torch_optimizer(name='__class__')", "expected one of SGD, "),
        ("torch_optimizer(name='Adam', fused=True)", "fused is not for the server to set"),
        ("torch_optimizer(name='Adam', momentum=0.9)", "momentum"),
        ("torch_optimizer(name='Adam', lr=-1.0)", "learning rate"),
    ],
)
def test_settings_that_are_none(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        outer(text)
