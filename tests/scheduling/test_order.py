"""The order of a pass is the same on every worker."""

from __future__ import annotations

import torch

from lightning_async.scheduling import permutation


def test_a_pass_is_a_permutation_that_all_compute_alike() -> None:
    first = permutation(100, seed=3, number=0)
    assert sorted(first.tolist()) == list(range(100))
    assert torch.equal(first, permutation(100, seed=3, number=0))
    assert not torch.equal(first, permutation(100, seed=3, number=1))
    assert not torch.equal(first, permutation(100, seed=4, number=0))
    assert permutation(5, 1, 1, shuffle=False).tolist() == [0, 1, 2, 3, 4]


def test_the_order_is_the_same_on_every_machine_and_ignores_global_state() -> None:
    torch.manual_seed(123)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert permutation(8, seed=0, number=0).tolist() == [4, 0, 7, 3, 2, 5, 1, 6]
    finally:
        torch.set_default_dtype(default)
