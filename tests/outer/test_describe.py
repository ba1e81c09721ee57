"""How a worker describes its optimizer."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lightning_async.errors import ConfigError
from lightning_async.outer import ALLOWED, TorchOuter, describe, hyper_of


@pytest.mark.parametrize("name", ALLOWED)
def test_the_record_is_json_and_makes_the_same_class(name: str) -> None:
    model = nn.Linear(2, 2)
    optimizer = ALLOWED[name](model.parameters(), lr=0.05)
    record = describe(optimizer, {id(p): n for n, p in model.named_parameters()})
    assert json.loads(json.dumps(record)) == record
    made = TorchOuter(record, {n: p.detach().clone() for n, p in model.named_parameters()})
    assert made.names == ("weight", "bias")
    assert type(made._optimizer) is type(optimizer)
    assert made._optimizer.param_groups[0]["lr"] == 0.05


def test_frozen_parameters_are_left_out_and_foreign_ones_refused() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    record = describe(optimizer, {id(model.weight): "weight"})
    assert record["groups"][0]["names"] == ["weight"]
    with pytest.raises(ConfigError, match="not part of the module"):
        describe(torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=1.0), {})


def test_only_torchs_own_classes_are_described() -> None:
    class SGD(torch.optim.SGD):
        """A namesake."""

    parameter = nn.Parameter(torch.zeros(3))
    for optimizer in (SGD([parameter], lr=1.0), torch.optim.LBFGS([parameter])):
        with pytest.raises(ConfigError, match='Use submit="update"'):
            describe(optimizer, {id(parameter): "p"})


def test_reports_hold_what_schedulers_change() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter], lr=torch.tensor(0.5), betas=(0.9, 0.99))
    (group,) = describe(optimizer, {id(parameter): "p"})["groups"]
    optimizer.param_groups[0]["lr"] = 0.25
    assert hyper_of(optimizer, [group["hyper"]]) == [
        {"lr": [0.25, 0.5], "betas": [[0.9, 0.99], [0.9, 0.99]], "weight_decay": [0.01, 0.01]}
    ]
