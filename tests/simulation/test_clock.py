"""The virtual clock: order, actors that sleep and wait, killing, and nothing left behind (tests/conftest.py looks)."""

from __future__ import annotations

import pytest

from lightning_async.simulation.clock import Clock


@pytest.fixture
def clock():
    clock = Clock()
    yield clock
    clock.close()


def test_events_happen_in_the_order_of_their_times_and_equal_ones_as_they_were_put_down(clock):
    seen = []
    for time, name in ((2.0, "c"), (1.0, "a"), (1.0, "b"), (0.5, "first")):
        clock.at(time, lambda name=name: seen.append((clock.now, name)))
    clock.run()
    assert seen == [(0.5, "first"), (1.0, "a"), (1.0, "b"), (2.0, "c")]


def test_an_event_in_the_past_happens_now(clock):
    seen = []
    clock.at(3.0, lambda: clock.at(1.0, lambda: seen.append(clock.now)))
    clock.run()
    assert seen == [3.0]


def test_actors_take_turns_in_virtual_time(clock):
    seen = []

    def walk(name: str, step_s: float) -> None:
        for _ in range(3):
            clock.sleep(step_s)
            seen.append((clock.now, name))

    clock.spawn("slow", lambda: walk("slow", 2.0))
    clock.spawn("fast", lambda: walk("fast", 1.0))
    clock.run()
    assert seen == [(1, "fast"), (2, "slow"), (2, "fast"), (3, "fast"), (4, "slow"), (6, "slow")]


def test_wait_ends_by_wake_or_by_its_time_and_an_old_wake_ends_no_later_wait(clock):
    seen = []

    def body() -> None:
        clock.wait(10.0)
        seen.append(clock.now)
        clock.wait(10.0)
        seen.append(clock.now)

    actor = clock.spawn("one", body)
    for time in (3.0, 3.0):
        clock.at(time, lambda: clock.wake(actor))
    clock.run()
    assert seen == [3.0, 10.0]


def test_run_ends_at_its_limit_and_goes_on_from_there(clock):
    seen = []
    clock.spawn("one", lambda: [clock.sleep(1.0) or seen.append(clock.now) for _ in range(5)])
    clock.run(2.5)
    assert (seen, clock.now) == ([1.0, 2.0], 2.5)
    clock.run()
    assert seen == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_stop_ends_the_run(clock):
    clock.at(1.0, clock.stop)
    clock.at(2.0, lambda: pytest.fail("after the end"))
    clock.run()
    assert clock.now == 1.0


def test_a_killed_actor_ends_where_it_waits(clock):
    seen = []

    def body() -> None:
        try:
            clock.sleep(100.0)
        finally:
            seen.append(clock.now)

    actor = clock.spawn("one", body)
    clock.at(5.0, lambda: clock.kill(actor))
    clock.run()
    assert seen == [5.0]
    assert actor.ended


def test_one_that_is_killed_before_it_began_never_does(clock):
    actor = clock.spawn("one", lambda: pytest.fail("it ran"))
    clock.kill(actor)
    clock.run()
    assert actor.ended


@pytest.mark.parametrize("where", ["event", "actor"])
def test_what_fails_is_raised_by_run(clock, where):
    def broken() -> None:
        raise RuntimeError("broken")

    if where == "event":
        clock.at(1.0, broken)
    else:
        clock.spawn("one", broken)
    clock.spawn("other", lambda: clock.sleep(1000.0))
    with pytest.raises(RuntimeError, match="broken"):
        clock.run()


def test_close_ends_every_actor_even_those_that_sleep_again_while_they_end():
    clock, seen = Clock(), []

    def body() -> None:
        try:
            clock.sleep(100.0)
        finally:
            seen.append("asked to end")
            clock.sleep(1.0)
            seen.append("never here")

    for name in "abc":
        clock.spawn(name, body)
    clock.run(1.0)
    clock.close()
    assert seen == ["asked to end"] * 3
