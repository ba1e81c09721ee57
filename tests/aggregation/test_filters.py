"""Zeno++ and Kardam by their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_async.aggregation.filters import dampening, kardam_passes, lipschitz, zeno
from lightning_async.errors import ConfigError


def test_zeno_takes_what_points_the_trusted_way_and_gives_it_the_trusted_length():
    trusted = torch.randn(100, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(100, generator=torch.Generator().manual_seed(1))
    accepted = zeno(1e6 * (trusted + 0.3 * noise), trusted, rho=0.1)
    assert accepted is not None
    assert accepted.norm().item() == pytest.approx(trusted.norm().item(), rel=1e-5)
    assert zeno(-trusted, trusted, rho=0.1) is None
    assert zeno(torch.zeros(100), trusted, rho=0.1) is None
    assert zeno(trusted, torch.zeros(100), rho=0.1) is None


def test_zeno_threshold_is_the_formula():
    trusted = torch.tensor([2.0, 0.0])
    for angle in torch.linspace(0, math.pi, 37).tolist():
        update = 5 * torch.tensor([math.cos(angle), math.sin(angle)])
        score = 4 * math.cos(angle) - 0.5 * 4
        if abs(score + 0.4) > 1e-3:
            assert (zeno(update, trusted, rho=0.5, epsilon=0.4) is not None) == (score >= -0.4)


def test_kardam_refuses_the_steepest_workers():
    coefficients = [1.0, 1.1, 0.9, 1.2, 0.8, 1.0, 50.0]
    assert kardam_passes(1.2, coefficients, f=1)
    assert not kardam_passes(50.0, coefficients, f=1)
    assert not kardam_passes(0.1, coefficients[:6], f=2)
    assert not kardam_passes(math.inf, coefficients, f=1)
    g = torch.randn(10)
    assert lipschitz(g + 2, g, torch.ones(10), torch.zeros(10)) == pytest.approx(2.0)
    assert lipschitz(g + 2, g, g, g) == math.inf


def test_dampening_falls_with_staleness():
    assert [dampening(s, 0.5) for s in (0, 2)] == [1.0, math.exp(-1.0)]
    with pytest.raises(ConfigError):
        dampening(1, 0.0)
