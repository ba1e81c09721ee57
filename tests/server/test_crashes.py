"""The server is killed at every step of journal and snapshot, and at any time: nothing acknowledged is lost or doubled.

How to see these tests fail: `Trial(..., mutation=...)` removes one defence (crash_host.mutate); docs/durability.md has
the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from crashing import CASES, POINTS, Case, Host, Trial, assert_equal, uninterrupted

from lightning_async.persistence import JournalError, open_journal
from lightning_async.server import recovery

NAMES = [case.name for case in CASES]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


def check(trial: Trial, folder: Path) -> None:
    """The state on the disk is that of a run which nobody killed."""
    reference, _ = uninterrupted(trial.case, trial.rounds)
    journal = open_journal(folder)
    try:
        state = recovery.caught_up(recovery.from_snapshot(recovery.newest(folder)), folder, journal)
    finally:
        journal.close()
    assert state.coordinator is not None
    assert not state.differing
    assert_equal(state.coordinator, reference)
    assert trial.workers.missing() < 1e-4, "what a refusal brought back is sent later"
    accepted = sum(receipt.accepted for receipt in trial.receipts.values())
    assert accepted == sum(member.accepted for member in state.coordinator.run.members), "lost or applied twice"


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_killed_at_some_points_it_goes_on_as_if_nothing_had_happened(host: Host, case: Case, tmp_path: Path) -> None:
    rounds = 24 // case.workers
    points = ("journal.synced", "journal.committed", "snapshot.manifest", "answering")
    trial = Trial(host, case, tmp_path / "state", rounds, seed=1).run(points)
    assert trial.kills >= len(points)
    check(trial, tmp_path / "state")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_killed_at_every_point_and_at_any_time(host: Host, case: Case, tmp_path: Path) -> None:
    trial = Trial(host, case, tmp_path / "state", 200 // case.workers, seed=2).run(POINTS * 4, random_kills=25)
    print(f"{case.name}: {trial.kills} kills, {len(trial.receipts)} receipts")
    assert trial.kills >= 67, "200 in all three"
    check(trial, tmp_path / "state")


@pytest.mark.slow
@pytest.mark.parametrize("mutation", ["answer at once", "no deduplication", "no pushes in the journal"])
def test_the_proof_fails_where_a_defence_is_missing(host: Host, mutation: str, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with pytest.raises((AssertionError, JournalError)):
        check(Trial(host, CASES[0], folder, 20, seed=3, mutation=mutation).run(("answered", "received") * 4, 8), folder)


def test_the_proof_fails_where_what_was_refused_is_not_folded_back() -> None:
    case = next(case for case in CASES if "compression" in case.config)
    _, workers = uninterrupted(case, 10)
    _, forgetful = uninterrupted(case, 10, fold_back=False)
    assert workers.missing() < 1e-4 < 1e-2 < forgetful.missing()
