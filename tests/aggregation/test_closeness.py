"""How near rows are to a vector, and which are copies: against the definitions, dense, sparse and mixed."""

from __future__ import annotations

import pytest
import torch

from lightning_async.aggregation.closeness import PART, closeness, copies
from lightning_async.sparse import Sparse


def rows_of(kind: str, size: int = PART + 1000) -> list[torch.Tensor | Sparse]:
    generator = torch.Generator().manual_seed(0)
    made: list[torch.Tensor | Sparse] = []
    for i in range(6):
        row = torch.randn(size, generator=generator)
        if kind == "sparse" or (kind == "mixed" and i % 2):
            indices = torch.randperm(size, generator=generator)[: size // 50].sort().values
            made.append(Sparse(indices, row[indices], size))
        else:
            made.append(row)
    return made


def dense(row: torch.Tensor | Sparse) -> torch.Tensor:
    return row.dense() if isinstance(row, Sparse) else row


@pytest.mark.parametrize("kind", ["dense", "sparse", "mixed"])
def test_distances_and_cosines_are_those_of_the_whole_vectors(kind):
    rows = rows_of(kind)
    vector = torch.stack([dense(row) for row in rows]).mean(0)
    distances, cosines = closeness(rows, vector)
    for row, distance, cosine in zip(rows, distances, cosines, strict=True):
        assert distance == pytest.approx(float((dense(row).double() - vector.double()).norm()), rel=1e-4)
        assert cosine == pytest.approx(float(torch.cosine_similarity(dense(row), vector, dim=0)), abs=1e-5)


@pytest.mark.parametrize("kind", ["dense", "sparse", "mixed"])
def test_copies_are_found_by_direction_at_any_length(kind):
    rows = rows_of(kind)
    assert copies(rows, 0.9999) == []
    twin = rows[1]
    scaled = Sparse(twin.indices, twin.values * 7, twin.size) if isinstance(twin, Sparse) else twin * 7
    found = copies([*rows, scaled, dense(twin).clone()], 0.9999)
    assert [(i, j) for i, j, _ in found] == [(1, 6), (1, 7), (6, 7)]
    assert all(cosine == pytest.approx(1.0, abs=1e-5) for _, _, cosine in found)


def test_zero_is_near_to_itself_and_copies_nobody():
    zero = torch.zeros(100)
    empty = Sparse(torch.zeros(0, dtype=torch.int64), torch.zeros(0), 100)
    assert closeness([zero, empty], zero) == ([0.0, 0.0], [0.0, 0.0])
    assert copies([zero, empty, zero.clone()], 0.9999) == []
