"""The wait at the end of a round: always on a fast link, ever more rarely where it is in vain, and tried again."""

from __future__ import annotations

from lightning_async.worker.brief import BRIEF_S, MOST_SKIPPED, Brief


def waits(over: bool, rounds: int, brief: Brief | None = None) -> list[int]:
    """The rounds, counted from 0, at whose end it was waited."""
    waited: list[int] = []
    brief = brief or Brief()
    for number in range(rounds):

        def wait(seconds: float, number: int = number) -> bool:
            assert seconds == BRIEF_S
            waited.append(number)
            return over

        brief.wait(wait)
    return waited


def test_a_fast_link_is_waited_for_every_time() -> None:
    assert waits(over=True, rounds=50) == list(range(50))


def test_a_slow_one_costs_ever_less() -> None:
    assert waits(over=False, rounds=40) == [0, 2, 6, 14, 30]
    late = waits(over=False, rounds=10 * MOST_SKIPPED)
    assert late[-1] - late[-2] == MOST_SKIPPED + 1


def test_a_link_that_became_fast_is_noticed() -> None:
    brief = Brief()
    waits(over=False, rounds=31, brief=brief)
    assert waits(over=True, rounds=40, brief=brief) == list(range(31, 40))
