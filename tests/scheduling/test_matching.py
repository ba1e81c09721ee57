"""Stable matchings by brute force: every instance of small sides is stable, and the best one for those who propose."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_async.scheduling import is_stable, stable_matching

Lists = list[list[int]]
Match = Sequence[int | None]


def sides(most: int) -> st.SearchStrategy[tuple[Lists, Lists]]:
    """Preference lists of two sides of up to `most` each, complete or not."""

    def lists(n: int, m: int) -> st.SearchStrategy[tuple[Lists, Lists]]:
        def of(own: int, other: int) -> st.SearchStrategy[Lists]:
            some = st.permutations(range(other)).flatmap(lambda p: st.integers(0, other).map(lambda k: list(p)[:k]))
            return st.lists(some | st.permutations(range(other)).map(list), min_size=own, max_size=own)

        return st.tuples(of(n, m), of(m, n))

    return st.tuples(st.integers(1, most), st.integers(1, most)).flatmap(lambda size: lists(*size))


def matchings(proposers: int, receivers: int) -> Iterator[Match]:
    """All of them."""
    for match in itertools.product([None, *range(receivers)], repeat=proposers):
        taken = [receiver for receiver in match if receiver is not None]
        if len(taken) == len(set(taken)):
            yield match


def liking(lists: Lists, who: int, got: int | None) -> int:
    """Smaller is better."""
    return len(lists[who]) if got is None else lists[who].index(got)


def inverse(match: Match, receivers: int) -> list[int | None]:
    return [match.index(receiver) if receiver in match else None for receiver in range(receivers)]


def check(proposers: Lists, receivers: Lists) -> None:
    match = stable_matching(proposers, receivers)
    assert is_stable(match, proposers, receivers)
    stable = [other for other in matchings(len(proposers), len(receivers)) if is_stable(other, proposers, receivers)]
    assert tuple(match) in {tuple(other) for other in stable}
    back = inverse(match, len(receivers))
    for other in stable:
        assert all(liking(proposers, p, match[p]) <= liking(proposers, p, other[p]) for p in range(len(proposers)))
        theirs = inverse(other, len(receivers))
        assert all(liking(receivers, r, back[r]) >= liking(receivers, r, theirs[r]) for r in range(len(receivers)))
        assert {p for p, r in enumerate(other) if r is None} == {p for p, r in enumerate(match) if r is None}


@settings(max_examples=150, deadline=None)
@given(sides(4))
def test_it_is_stable_and_of_all_stable_ones_the_best_for_proposers_and_the_worst_for_receivers(
    lists: tuple[Lists, Lists],
) -> None:
    check(*lists)


def test_every_instance_of_two_and_two_and_of_two_and_three() -> None:
    def every(other: int) -> list[list[int]]:
        return [list(p) for size in range(other + 1) for p in itertools.permutations(range(other), size)]

    for proposers in itertools.product(every(2), repeat=2):
        for receivers in itertools.product(every(2), repeat=2):
            check(list(proposers), list(receivers))
    complete = [list(p) for p in itertools.permutations(range(3))]
    for proposers in itertools.product(complete, repeat=2):
        for receivers in itertools.product([[0, 1], [1, 0]], repeat=3):
            check(list(proposers), list(receivers))


def test_stability_is_seen() -> None:
    both = [[0, 1], [0, 1]]
    assert is_stable([0, 1], both, both)
    assert not is_stable([1, 0], both, both), "the first of each would rather have each other"
    assert not is_stable([0, 0], both, both), "one receiver for two"
    assert not is_stable([0, None], both, both), "the second ones are both alone"
    assert not is_stable([1], [[0]], [[0], [0]]), "nobody whom he would not have"


@pytest.mark.parametrize("proposals", ["first", "last"])
def test_a_rule_that_takes_whom_it_meets_is_not_stable(proposals: str) -> None:
    """What the checks above are worth: greedy assignment fails them."""

    def greedy(proposers: Lists, receivers: Lists) -> list[int | None]:
        order = range(len(proposers)) if proposals == "first" else reversed(range(len(proposers)))
        match: list[int | None] = [None] * len(proposers)
        for p in order:
            match[p] = next((r for r in proposers[p] if r not in match and p in receivers[r]), None)
        return match

    every = [[0, 1], [1, 0]]
    cases = [(list(a), list(b)) for a in itertools.product(every, repeat=2) for b in itertools.product(every, repeat=2)]
    assert not all(is_stable(greedy(*case), *case) for case in cases)
