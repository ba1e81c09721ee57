"""The shared stream: every sample once a pass, whoever takes it and however much at a time."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_async.scheduling import Stream, permutation


@given(st.integers(1, 50), st.lists(st.integers(1, 120), max_size=20))
def test_ranges_follow_each_other_without_gap_or_overlap(length: int, counts: list[int]) -> None:
    stream, taken = Stream(length), []
    for count in counts:
        ranges, stream = stream.take(count)
        assert sum(stop - start for _, start, stop in ranges) == count
        assert all(0 <= start < stop <= length for _, start, stop in ranges)
        taken += [number * length + i for number, start, stop in ranges for i in range(start, stop)]
    assert taken == list(range(sum(counts)))
    assert stream.position == sum(counts)


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
