"""Ties: where rows are equally good the lower row is taken, in every rule that chooses among rows.

The rows of a Hadamard matrix are all equally far from each other, so every choice among them is a tie.
"""

from __future__ import annotations

import pytest
import torch

from lightning_async.aggregation import aggregator


def equidistant(n: int) -> torch.Tensor:
    """[n, 16]: rows of which any two differ in 8 coordinates, by 2."""
    matrix = torch.ones(1, 1)
    while len(matrix) < 16:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix[:n]


def majority(rows: torch.Tensor) -> torch.Tensor:
    """The nearest to the median of an odd number of signs are those of the majority."""
    return rows.sum(0).sign()


def neighbours(rows: torch.Tensor, keep: int) -> torch.Tensor:
    """[n, d]: the mean of each row and the lowest others."""
    others = [[j for j in range(len(rows)) if j != i][: keep - 1] for i in range(len(rows))]
    return torch.stack([rows[[i, *mine]].mean(0) for i, mine in enumerate(others)])


N, F = 12, 2
LOWEST = {
    f"krum(f={F})": lambda rows: rows[0],
    f"multi_krum(f={F})": lambda rows: rows[: N - F - 2].mean(0),
    f"multi_krum(f={F}, m=3)": lambda rows: rows[:3].mean(0),
    f"mda(f={F})": lambda rows: rows[: N - F].mean(0),
    f"monna(f={F})": lambda rows: rows[: N - F].mean(0),
    f"monna(f={F}, pivot=5)": lambda rows: rows[: N - F].mean(0),
    f"pipeline(nnm(f={F}), mean)": lambda rows: neighbours(rows, N - F).mean(0),
}


@pytest.mark.parametrize("spec", LOWEST)
@pytest.mark.parametrize("order", [range(N), range(N - 1, -1, -1), [3, 1, 4, 11, 5, 9, 2, 6, 8, 7, 10, 0]])
def test_the_lower_row_is_taken(spec, order):
    rows = equidistant(N)[list(order)].contiguous()
    torch.testing.assert_close(aggregator(spec)(rows), LOWEST[spec](rows))


@pytest.mark.parametrize("order", [range(11), range(10, -1, -1)])
def test_so_does_bulyan_again_and_again(order):
    """Of 11 rows it takes 7 one after another, and of 7 signs the 3 nearest to the median."""
    rows = equidistant(11)[list(order)].contiguous()
    torch.testing.assert_close(aggregator("bulyan(f=2)")(rows), majority(rows[:7]))
