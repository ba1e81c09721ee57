"""Error feedback is what makes a sparse codec learn: a small network, every gradient through a codec."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_async.codecs import upload_codec

STEPS, LEARNING_RATE, TRAINED_ON = 400, 0.1, 1400


def accuracy(spec: str) -> float:
    """Of handwritten digits that were not trained on."""
    images, digits = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(digits)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    member = upload_codec(spec)
    state = member.init(len(flat))
    for _ in range(STEPS):
        rows = torch.randint(0, TRAINED_ON, (64,), generator=generator)
        nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        gradient = torch.cat([p.grad.view(-1) for p in model.parameters()])
        payload, state = member.encode(gradient, state)
        flat = flat - LEARNING_RATE * member.decode(payload, len(flat))
        nn.utils.vector_to_parameters(flat, model.parameters())
        model.zero_grad()
    with torch.no_grad():
        return float((model(inputs[TRAINED_ON:]).argmax(1) == labels[TRAINED_ON:]).float().mean())


@pytest.fixture(scope="module")
def uncompressed() -> float:
    return accuracy("none")


def test_the_task_can_be_learnt(uncompressed):
    assert uncompressed > 0.85


def test_without_feedback_it_is_not(uncompressed):
    assert accuracy("error_feedback(topk(density=0.01), beta=0.0)") < uncompressed - 0.2


@pytest.mark.parametrize(
    "spec",
    [
        "topk",
        "error_feedback(topk(density=0.015625, values='2bit'))",
        "error_feedback(topk(density=0.01, chunk=None))",
        "error_feedback(signsgd)",
        "int4",
        "fp16",
        "auto",
    ],
)
def test_with_feedback_it_is(spec, uncompressed):
    assert accuracy(spec) > uncompressed - 0.02
