"""Error feedback is what makes a sparse codec learn: a small network, SGD at 0.1, every gradient through a codec.

Handwritten digits in random order, 1,400 to train on and 397 to test. What is asked was there before the first run:
0.957 had been measured uncompressed, 0.635 without feedback, with it 0.92 was to be reached. The 36 epochs were chosen
from uncompressed runs alone: the first multiple of four at which the mean over these three seeds reached 0.957.

What came out, mean of three: uncompressed 0.957, with feedback 0.958, without 0.857. That misses 0.92, but by less than
the 0.635 of before: in 36 epochs the largest 1 % of so small a network's gradient has been nearly everywhere.
"""

from __future__ import annotations

import statistics

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_async.codecs import upload_codec

EPOCHS, LEARNING_RATE, TRAINED_ON, BATCH = 36, 0.1, 1400, 64
SEEDS = (1, 2, 3)


def shuffled() -> tuple[Tensor, Tensor]:
    images, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(digits)[order]


def accuracy(spec: str, seed: int) -> float:
    """Of digits that were not trained on."""
    inputs, labels = shuffled()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    member, generator = upload_codec(spec), torch.Generator().manual_seed(seed)
    state = member.init(len(flat))
    for _ in range(EPOCHS):
        for rows in torch.randperm(TRAINED_ON, generator=generator).split(BATCH):
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            gradient = torch.cat([p.grad.view(-1) for p in model.parameters()])
            payload, state = member.encode(gradient, state)
            flat = flat - LEARNING_RATE * member.decode(payload, len(flat))
            nn.utils.vector_to_parameters(flat, model.parameters())
            model.zero_grad()
    with torch.no_grad():
        return float((model(inputs[TRAINED_ON:]).argmax(1) == labels[TRAINED_ON:]).float().mean())


def mean(spec: str) -> float:
    return statistics.mean(accuracy(spec, seed) for seed in SEEDS)


def test_uncompressed_it_learns() -> None:
    assert mean("none") >= 0.95


def test_top_k_without_feedback_stays_below_what_is_asked() -> None:
    assert mean("error_feedback(topk(density=0.01), beta=0.0)") < 0.92


def test_top_k_with_feedback_does() -> None:
    assert mean("topk(density=0.01)") >= 0.92


@pytest.mark.parametrize(
    "spec",
    [
        "error_feedback(topk(density=0.015625, values='2bit'))",
        "error_feedback(topk(density=0.01, chunk=None))",
        "error_feedback(signsgd)",
        "int4",
        "fp16",
        "auto",
    ],
)
def test_other_codecs_do(spec: str) -> None:
    assert accuracy(spec, SEEDS[0]) >= 0.92
