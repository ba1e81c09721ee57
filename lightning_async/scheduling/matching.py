"""Stable matching: deferred acceptance of Gale and Shapley (1962), for sides of any two sizes and incomplete lists.

A matching is stable when nobody is matched to somebody that he would not have, and no pair would rather have each other
than what they got. The one that comes out is the best for every proposer, and the worst for every receiver, of all that
are stable (Gale and Shapley 1962, theorem 2; McVitie and Wilson 1971).
"""

from __future__ import annotations

from collections.abc import Sequence

Preferences = Sequence[Sequence[int]]  # of each on one side: whom of the other he would have, the best first


def stable_matching(proposers: Preferences, receivers: Preferences) -> list[int | None]:
    """For each proposer the receiver that he gets; None for nobody. O(n x m) proposals at most."""
    rank = [{proposer: place for place, proposer in enumerate(liked)} for liked in receivers]
    nexts = [0] * len(proposers)
    holder: list[int | None] = [None] * len(receivers)
    free = list(range(len(proposers)))[::-1]
    while free:
        proposer = free.pop()
        wanted = proposers[proposer]
        if nexts[proposer] == len(wanted):
            continue
        receiver = wanted[nexts[proposer]]
        nexts[proposer] += 1
        present = holder[receiver]
        if proposer in rank[receiver] and (present is None or rank[receiver][proposer] < rank[receiver][present]):
            holder[receiver] = proposer
            proposer = proposer if present is None else present
            if present is None:
                continue
        free.append(proposer)
    found: list[int | None] = [None] * len(proposers)
    for receiver, got in enumerate(holder):
        if got is not None:
            found[got] = receiver
    return found


def is_stable(match: Sequence[int | None], proposers: Preferences, receivers: Preferences) -> bool:
    """Whether `match` (receiver of each proposer) is a matching, and a stable one. Brute force: for tests."""
    got = [receiver for receiver in match if receiver is not None]
    back = {receiver: proposer for proposer, receiver in enumerate(match) if receiver is not None}
    borne = all(r is None or (r in proposers[p] and p in receivers[r]) for p, r in enumerate(match))
    if len(got) != len(set(got)) or not borne:
        return False
    pairs = ((p, r) for p, liked in enumerate(proposers) for r in liked if p in receivers[r])
    return not any(_prefers(proposers[p], r, match[p]) and _prefers(receivers[r], p, back.get(r)) for p, r in pairs)


def _prefers(liked: Sequence[int], other: int, present: int | None) -> bool:
    return present is None or liked.index(other) < liked.index(present)
