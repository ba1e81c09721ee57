"""On a CUDA device: the same bytes as on the CPU, and nothing leaves the device but what is sent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_async.codecs import codec
from lightning_async.errors import ConfigError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
D = 1_500_000
SPECS = [
    "topk",
    "error_feedback(topk())",
    "error_feedback(topk(density=0.015625, values='2bit'), beta=0.95)",
    "error_feedback(topk(density=0.01, chunk=None))",
    "auto",
]


def vectors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(D, generator=generator) / torch.rand(D, generator=generator).sqrt() for _ in range(3)]


@pytest.mark.parametrize("spec", SPECS)
def test_payloads_and_states_are_those_of_the_cpu(spec: str) -> None:
    member = codec(spec)
    here, there = member.init(D), member.init(D)
    for vector in vectors():
        expected, here = member.encode(vector, here)
        payload, there = member.encode(vector.cuda(), there)
        assert bytes(payload) == bytes(expected)
    assert all(tensor.device.type == "cuda" for name, tensor in there.items() if name == "residual")
    assert all(torch.equal(there[name].cpu(), here[name]) for name in here)


@pytest.mark.parametrize("spec", SPECS)
def test_only_what_is_kept_leaves_the_device(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    member, given = codec(spec), vectors()[0].cuda()
    _, state = member.encode(given, member.init(D))
    moved: list[int] = []
    plain = Tensor.cpu

    def counted(tensor: Tensor) -> Tensor:
        moved.append(tensor.numel() if tensor.is_cuda else 0)
        return plain(tensor)

    monkeypatch.setattr(Tensor, "cpu", counted)
    member.encode(given, state)
    assert moved, "the count is at work"
    assert max(moved) <= 0.03 * D


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_there_and_the_state_stays(bad: float) -> None:
    member, given = codec("error_feedback(topk())"), vectors()[0].cuda()
    _, state = member.encode(given, member.init(D))
    before = state["residual"].clone()
    given[D // 2] = bad
    with pytest.raises(ConfigError, match="NaN or infinity"):
        member.encode(given, state)
    assert torch.equal(state["residual"], before)


def test_a_refused_payload_goes_back_into_a_residual_there() -> None:
    member, given = codec("error_feedback(topk())"), vectors()[0].cuda()
    payload, state = member.encode(given, member.init(D))
    assert member.fold_back is not None
    state = member.fold_back(payload, state)
    assert torch.allclose(state["residual"], given, rtol=1e-5)
