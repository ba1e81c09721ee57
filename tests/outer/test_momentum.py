"""Flat outer optimizers against float64 loops, and against torch's own where it has them."""

from __future__ import annotations

import pytest
import torch

from lightning_async.errors import ConfigError
from lightning_async.outer import OUTERS, outer


def updates(count: int = 20, d: int = 50) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(d, generator=generator) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("sgd(lr=0.3)", {"lr": 0.3}),
        ("nesterov(lr=0.7, momentum=0.9)", {"lr": 0.7, "momentum": 0.9, "nesterov": True}),
        ("nesterov(lr=0.5, momentum=0.0)", {"lr": 0.5}),
    ],
)
def test_they_equal_torch(text: str, settings: dict[str, float]) -> None:
    ours, theirs = torch.ones(50), torch.nn.Parameter(torch.ones(50))
    member, optimizer = outer(text), torch.optim.SGD([theirs], **settings)  # type: ignore[arg-type]
    state = member.init(50)
    for u in updates():
        state = member.step(ours, u, 1.0, state)
        theirs.grad = u
        optimizer.step()
    assert torch.allclose(ours, theirs.detach(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", OUTERS)
def test_a_scaled_update_is_the_update_times_the_scale_and_is_not_written(name: str) -> None:
    a, b, member = torch.zeros(50), torch.zeros(50), outer(name)
    left, right = member.init(50), member.init(50)
    for u in updates(5):
        kept = u.clone()
        left = member.step(a, u, 0.25, left)
        right = member.step(b, u * 0.25, 1.0, right)
        assert torch.equal(u, kept)
    assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    "text", ["sgd(lr=0)", "sgd(lr=-1.0)", "nesterov(lr=1e999)", "nesterov(momentum=1.0)", "nesterov(momentum=-0.1)"]
)
def test_settings_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"outer (lr|momentum)"):
        outer(text)
