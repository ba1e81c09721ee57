"""Selection by its definition: the k largest magnitudes of each chunk, of equal ones the first, never zeros."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_async.codecs import kernels, selection


@pytest.fixture(params=["numba", "torch"], autouse=True)
def path(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(kernels, "compiled_select", lambda: None)
    elif kernels.compiled_select() is None:
        pytest.skip("numba is not installed")


def by_definition(x: np.ndarray, density: float, chunk: int | None) -> list[int]:
    size, found = chunk or max(1, x.size), []
    for low in range(0, x.size, size):
        part = np.abs(x[low : low + size])
        k = selection.share(part.size, density)
        best = np.lexsort((np.arange(part.size), -part))[:k]
        found += sorted(low + int(i) for i in best if part[i] > 0)
    return found


def vector(kind: str, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = {
        "heavy": lambda: rng.standard_t(2, d),
        "ties": lambda: rng.integers(-2, 3, d),
        "equal": lambda: np.full(d, -3.0),
        "rare": lambda: rng.standard_normal(d) * (rng.random(d) < 0.01),
        "scales": lambda: rng.standard_normal(d) * 10.0 ** rng.integers(-30, 30, d),
        "denormal": lambda: rng.standard_normal(d) * 1e-41,
        "columns": lambda: rng.standard_normal(d) * np.where(np.arange(d) % 64 == 5, 100.0, 1.0),
    }
    return made[kind]().astype(np.float32)


@given(
    kind=st.sampled_from(["heavy", "ties", "equal", "rare", "scales", "denormal", "columns"]),
    d=st.integers(0, 3000),
    density=st.sampled_from([0.001, 0.01, 0.1, 0.5, 1.0]),
    chunk=st.sampled_from([None, 16, 100, 1024]),
    seed=st.integers(0, 999),
)
def test_the_k_largest_of_each_chunk(kind, d, density, chunk, seed):
    x = vector(kind, d, seed)
    places = selection.select(torch.from_numpy(x), density, chunk)
    assert places.tolist() == by_definition(x, density, chunk)
    assert len(places) <= selection.kept(d, density, chunk)


@pytest.mark.parametrize("kind", ["heavy", "ties", "equal", "rare", "scales"])
def test_the_whole_of_a_vector_that_is_sampled(kind):
    x = vector(kind, 1_200_000, 1)
    places = selection.select(torch.from_numpy(x), 0.003, None)
    assert places.tolist() == by_definition(x, 0.003, None)


@pytest.mark.parametrize("chunk", [None, 4096])
def test_feedback_is_added_before_and_rounded_twice(chunk):
    vector_, residual = torch.randn(10_000), torch.randn(10_000)
    expected = (residual * torch.tensor(0.9)) + vector_
    places, numbers = selection.accumulate(vector_, residual, 0.9, 0.01, chunk)
    assert torch.equal(numbers, residual[places])
    assert torch.equal(residual, expected)
    assert torch.equal(places, selection.select(expected, 0.01, chunk))
