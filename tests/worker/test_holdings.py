"""What a worker holds, where its progress is given up or its batches end."""

from __future__ import annotations

from lightning_async.worker.holdings import Holdings


def test_what_is_accumulated_while_an_update_is_given_up_counts_with_the_next_step() -> None:
    """Its gradients are in the model still, and will be stepped on: were it given back, it would be applied twice."""
    holdings = Holdings()
    holdings.grant("train", [(0, 0, 6)])
    holdings.begin("train", [(0, 0, 2)])
    holdings.send(1, holdings.stepped())
    holdings.begin("train", [(0, 2, 4)])
    rest = holdings.stepped()
    holdings.begin("train", [(0, 4, 6)])
    holdings.give_up(1, rest, spoiled=False)
    assert holdings.of("train") == [(0, 4, 6)]
    assert holdings.stepped() == [("train", (0, 4, 6))]


def test_what_no_step_follows_is_told_once() -> None:
    holdings = Holdings()
    holdings.grant("train", [(0, 0, 6)])
    holdings.begin("train", [(0, 0, 2)])
    holdings.end()
    assert holdings.of("train") == [(0, 2, 6)]
    assert holdings.unstepped("train") == [(0, 0, 2)]
    assert holdings.unstepped("train") == []
    assert holdings.stepped() == []
