"""Arithmetic of ranges: as with sets of positions, and in time that a peer who names many cannot stretch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_async.scheduling import Held, Ledger, Range, Unit, ranges
from lightning_async.scheduling.ledger import MOST_PIECES

ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(1, 6)).map(lambda row: (row[0], row[1], sum(row[1:])))
)


def positions(rows: list[Range]) -> set[tuple[int, int]]:
    return {(number, i) for number, start, stop in rows for i in range(start, stop)}


@given(rows=ROWS, cut=ROWS)
def test_what_is_cut_out_and_what_stays_are_the_sets(rows: list[Range], cut: list[Range]) -> None:
    assert positions(ranges.without(rows, cut)) == positions(rows) - positions(cut)
    cuts = ranges.merged(cut)
    common = [part for row in ranges.merged(rows) for part in ranges.inside(row, cuts)]
    assert positions(common) == positions(rows) & positions(cut)
    assert ranges.size(common) == len(positions(common)), "each once"
    assert common == sorted(common)


def test_a_worker_that_holds_crumbs_costs_no_square_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message can name 65,536 ranges, so with squares it could stop a server for good."""
    looks, overlap = [0], ranges.overlap

    def counted(a: Range, b: Range) -> Range | None:
        looks[0] += 1
        return overlap(a, b)

    monkeypatch.setattr(ranges, "overlap", counted)
    n = 3000
    ledger, crumbs = Ledger(2 * n), [(0, 2 * i, 2 * i + 1) for i in range(n)]
    ledger.lease("crumbs", ledger.units(2 * n, 1)[0], 0.0)
    ledger.keep("crumbs", crumbs, "given back", 0.0)
    ledger.keep("crumbs", crumbs, "given back", 0.0)
    assert ledger.missing("crumbs", crumbs) == []
    ledger.claim("crumbs", crumbs, 0.0)
    ledger.drop("crumbs", crumbs, "dropped", 1)
    ledger.lease("other", ledger.units(n, 1)[0], 0.0)
    ledger.release("other", "left")
    assert looks[0] < 100 * n
    assert ledger.left(0) == 2 * n


def test_a_unit_has_no_more_pieces_than_can_be_said() -> None:
    n = MOST_PIECES + 10
    ledger = Ledger(2 * n)
    ledger.lease("crumbs", ledger.units(2 * n, 1)[0], 0.0)
    ledger.keep("crumbs", [(0, 2 * i, 2 * i + 1) for i in range(n)], "given back", 0.0)
    first, second = ledger.units(n, 2)
    assert (len(first.pieces), first.size) == (MOST_PIECES, MOST_PIECES)
    assert second.pieces[0].range > first.pieces[-1].range


def test_the_first_samples_of_a_unit() -> None:
    unit = Unit((Held((0, 2, 4), before="a"), Held((1, 0, 3))))
    assert unit.first(3).ranges == [(0, 2, 4), (1, 0, 1)]
    assert unit.first(3).samples_of("a") == 2
    assert unit.first(9) == unit
    assert unit.first(0).pieces == ()
