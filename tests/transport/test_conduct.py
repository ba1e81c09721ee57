"""How much a key may say, and when it is put out."""

from __future__ import annotations

from lightning_async.transport.conduct import BAN_S, BURST, FORGIVEN_S, MESSAGES_S, MOST_FORGIVEN, Conduct

KEY, OTHER = b"k" * 32, b"o" * 32


def test_a_burst_is_heard_and_then_a_rate() -> None:
    conduct = Conduct()
    assert sum(conduct.may_speak(KEY, 0.0) for _ in range(int(BURST) + 500)) == BURST
    assert sum(conduct.may_speak(KEY, 1.0) for _ in range(int(BURST))) == MESSAGES_S
    assert conduct.may_speak(OTHER, 1.0), "the others are heard"


def test_time_that_goes_back_gives_nothing() -> None:
    conduct = Conduct()
    assert sum(conduct.may_speak(KEY, 100.0) for _ in range(2 * int(BURST))) == BURST
    assert not conduct.may_speak(KEY, 50.0)
    assert not conduct.may_speak(KEY, 100.0)


def test_who_does_wrong_too_often_is_out_for_a_while() -> None:
    conduct = Conduct()
    assert not any(conduct.blame(KEY, 0.0) for _ in range(int(MOST_FORGIVEN)))
    assert not conduct.is_out(KEY, 0.0)
    assert conduct.blame(KEY, 0.0)
    assert conduct.is_out(KEY, BAN_S - 0.1)
    assert not conduct.is_out(OTHER, 0.0)
    assert not conduct.is_out(KEY, BAN_S)


def test_a_mistake_now_and_then_is_forgiven() -> None:
    conduct = Conduct()
    assert not any(conduct.blame(KEY, i / FORGIVEN_S) for i in range(10 * int(MOST_FORGIVEN)))


def test_no_more_than_so_many_are_remembered_and_the_forgotten_are_forgiven() -> None:
    conduct = Conduct(most=10)
    while not conduct.blame(KEY, 0.0):
        pass
    for number in range(9):
        conduct.may_speak(b"%d" % number, 0.0)
    assert conduct.is_out(KEY, 1.0)
    for number in range(1000):
        conduct.may_speak(b"%d" % number, 0.0)
    assert len(conduct) == 10
    assert not conduct.is_out(KEY, 1.0)
