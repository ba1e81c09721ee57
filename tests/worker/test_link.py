"""The link on bad networks, in virtual time: nothing is lost, nothing counts twice, and nobody waits for ever."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from town import DIGEST, TENSORS, D, Town

from lightning_async.errors import ConfigError, RefusedError, UnreachableError
from lightning_async.transport.faults import FaultyConnection, Script
from lightning_async.wire import messages as m
from lightning_async.worker import calls, patience
from lightning_async.worker import link as link_module

UPDATES = 40
SILENCE_S = patience.SILENCE_SHARE * 20.0  # of the town's patience
BAD: dict[str, Script] = {
    "drop": Script(seed=3).drop(0.2),
    "duplicate": Script(seed=3).duplicate(0.5),
    "delay": Script(seed=3).delay(0.0, 2.0, p=0.5),
    "reorder": Script(seed=3).reorder(0.3),
}
ALL = Script(seed=5).drop(0.1).duplicate(0.1).delay(0.0, 1.0, p=0.2).reorder(0.1)


@pytest.fixture
def town() -> Iterator[Callable[..., Town]]:
    with contextlib.ExitStack() as stack:

        def made(*args: Any, **options: Any) -> Town:
            return stack.enter_context(contextlib.closing(Town(*args, **options)))

        yield made


def member(town: Town) -> Any:
    return town.coordinator.run.members.named("w")


def send_all(town: Town, count: int) -> None:
    """One update after the other, as the courier does; each has exactly one receipt, and it accepts."""
    send_all_after(town, 0, count)


def send_all_after(town: Town, done: int, count: int) -> None:
    """As `send_all`, where the first `done` have been sent."""
    for seq in range(done + 1, count + 1):
        receipts = town.push(seq)
        town.until(lambda receipts=receipts: receipts, 120.0)
        town.advance(0.3)
        assert [(r.seq, r.accepted) for r in receipts] == [(seq, True)], receipts


@pytest.mark.parametrize("kind", [*BAD, "all"])
def test_every_update_counts_exactly_once(town: Callable[..., Town], kind: str) -> None:
    script = BAD.get(kind, ALL)
    place = town(script)
    place.begin()
    send_all(place, UPDATES)
    fired = place.lines[0].fired
    assert set(fired) == {fault.kind for fault in script.faults}, fired
    assert member(place).accepted == UPDATES
    assert place.coordinator.run.version == UPDATES
    assert place.parameters == [-float(UPDATES * (UPDATES + 1) // 2)] * D


@pytest.mark.parametrize("script", [Script(), ALL])
def test_an_altered_update_is_sent_again(town: Callable[..., Town], script: Script) -> None:
    place = town(script, alter_every=3)
    place.begin()
    send_all(place, UPDATES)
    assert place.altering[0].fired > UPDATES // 3
    assert place.service.damaged == place.altering[0].fired
    assert member(place).accepted == UPDATES
    assert place.parameters == [-float(UPDATES * (UPDATES + 1) // 2)] * D


def test_a_lost_update_is_sent_again_after_a_beat(town: Callable[..., Town]) -> None:
    place = town()
    place.begin()
    place.lines[0]._line._up._faults = place.lines[0]._line._down._faults = []
    place.advance(0.5)
    lose_next(place, "send", 1)
    receipts = place.push(1)
    took = place.until(lambda: receipts, 20.0)
    assert 0.5 < took < 4.0, "a beat, not the whole silence"
    assert place.lines[0].fired["drop"] == 1


def test_a_lost_receipt_is_the_same_receipt_again(town: Callable[..., Town]) -> None:
    place = town()
    place.begin()
    place.advance(0.5)
    lose_next(place, "receive", 1)
    receipts = place.push(1)
    place.until(lambda: receipts, 20.0)
    assert place.lines[0].fired["drop"] == 1
    assert receipts == [m.Receipt(seq=1, accepted=True, version=0)]
    assert member(place).accepted == 1, "the server has seen it twice and counted it once"
    assert place.parameters == [-1.0] * D


BREAKS = {
    "before": "lightning_async.server.admission.decode_update",
    "after": "lightning_async.server.counting.count",
    "stepping": "lightning_async.server.exchange.step_when_ready",
}


@pytest.mark.parametrize("where", BREAKS)
def test_an_update_on_which_the_server_fails_is_asked_for_again_and_counts_once(
    town: Callable[..., Town], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = town()
    place.begin()
    place.advance(0.5)
    *path, name = BREAKS[where].split(".")
    module, failures = importlib.import_module(".".join(path)), []
    real = getattr(module, name)

    def broken(*args: Any, **named: Any) -> Any:
        if not failures:
            failures.append(name)
            raise RuntimeError("broken once")
        return real(*args, **named)

    monkeypatch.setattr(module, name, broken)
    receipts = place.push(1)
    place.until(lambda: receipts, 20.0)
    assert (failures, place.service.failures) == ([name], 1)
    assert [(r.seq, r.accepted) for r in receipts] == [(1, True)]
    send_all_after(place, 1, 3)
    assert place.parameters == [-6.0] * D, "1 + 2 + 3, each once"
    assert len(member(place).receipts) == 3


def test_a_failure_that_stays_is_told_after_a_few_tries(
    town: Callable[..., Town], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = town()
    place.begin()
    tries: list[int] = []

    def broken(*args: Any) -> Any:
        tries.append(1)
        raise RuntimeError("broken for good")

    monkeypatch.setattr("lightning_async.server.admission.decode_update", broken)
    answers = place.push(1)
    place.until(lambda: answers, 20.0)
    assert [answer.reason for answer in answers] == ["internal"]
    assert len(tries) == 1 + calls.MOST_REPEATS
    assert place.parameters == [0.0] * D


def test_a_lost_beat_is_followed_by_another(town: Callable[..., Town]) -> None:
    """Without, a break that swallows an update and the Beat after it would cost the whole silence."""
    place = town()
    place.begin()
    place.advance(0.5)
    lose_next(place, "send", 2)
    receipts = place.push(1)
    took = place.until(lambda: receipts, 60.0)
    assert place.lines[0].fired["drop"] == 2
    assert took < SILENCE_S / 2
    assert len(place.lines) == 1, "no new connection was needed"


def test_a_lost_greeting_is_said_again(town: Callable[..., Town]) -> None:
    place = town(Script().drop(at=[1, 2], way="send"))
    took = place.until(lambda: place.link.joined, 60.0)
    assert place.lines[0].fired["drop"] >= 2
    assert took < SILENCE_S
    assert len(place.lines) == 1


def test_silence_leads_to_a_new_connection(town: Callable[..., Town]) -> None:
    place = town()
    place.begin()
    place.lines[0]._line._up._faults += cut()
    place.lines[0]._line._down._faults += cut()
    receipts = place.push(1)
    took = place.until(lambda: receipts, 120.0)
    assert SILENCE_S <= took < 3 * SILENCE_S
    assert len(place.lines) == 2
    assert place.lines[0].fired["cut"] > 0
    assert member(place).accepted == 1


def test_a_slow_upload_is_no_silence(town: Callable[..., Town], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten megabytes at an unknown rate may take minutes; dialling again would only begin them anew, were they whole."""
    monkeypatch.setattr(FaultyConnection, "cuts", False)
    place = town()
    place.begin()
    place.lines[0]._line._up._faults += cut()
    place.link.request(m.Push(seq=1, base=0, digest=DIGEST), lambda reply, _: None, (bytes(10_000_000), b""))
    place.advance(100.0)
    assert len(place.lines) == 1


def test_a_server_that_has_forgotten_us_is_greeted_and_the_requests_follow(town: Callable[..., Town]) -> None:
    place = town(patience_s=60.0)
    place.begin()
    place.coordinator.run.members.leave(member(place))
    receipts = place.push(1)
    place.until(lambda: receipts, 10.0)
    assert len(place.welcomes) == 2
    assert receipts[0].accepted
    assert member(place).accepted == 1


def test_a_server_that_never_answers_is_given_up_with_advice(town: Callable[..., Town]) -> None:
    place = town(Script().drop(1.0), patience_s=30.0)
    place.stop_server()
    with pytest.raises(UnreachableError, match=r"nobody answered at memory://town for 30 s\. Check that .* firewall"):
        place.until(lambda: False, 40.0)


def test_a_server_that_went_away_is_waited_for_much_longer(town: Callable[..., Town]) -> None:
    place = town(patience_s=30.0)
    place.begin()
    place.stop_server()
    receipts = place.push(1)
    place.advance(100.0)
    assert not receipts
    with pytest.raises(UnreachableError, match="for 120 s"):
        place.advance(30.0)


def test_what_is_asked_while_nobody_is_there_waits(town: Callable[..., Town]) -> None:
    place = town()
    place.stop_server()
    answers = [place.ask(m.Share(key=f"k{i}", value=str(i))) for i in range(3)]
    place.advance(5.0)
    assert not any(answers)
    place.start_server()
    place.until(lambda: all(answers), 40.0)
    assert [answer[0].value for answer in answers] == ["0", "1", "2"]


def test_a_refusal_of_what_could_not_be_read_is_believed_in_the_end(town: Callable[..., Town]) -> None:
    place = town()
    place.begin()
    line = place.lines[0]
    send = line.send
    line.send = lambda frames: send([*frames[:2], bytes(4 * D), b""] if len(frames) > 2 else frames)  # no update 1
    answers = place.push(1)
    place.until(lambda: answers, 5.0)
    assert isinstance(answers[0], m.Refused)
    assert place.service.damaged == 1 + calls.MOST_REPEATS


def test_a_refusal_at_the_door_is_raised(town: Callable[..., Town]) -> None:
    place = town()
    place.begin()
    other = m.Hello(worker="w", instance="2", tensors=TENSORS, digest=DIGEST)
    link = link_module.Link(place.dial, other, lambda w: None, lambda a: None, place.address, clock=place.clock)
    try:
        place.advance(0.2)
        with pytest.raises(RefusedError, match="a live worker is called 'w'"):
            link.pump(0.0)
    finally:
        link.connection.close()


def test_goodbye_is_bounded_when_nobody_answers(town: Callable[..., Town]) -> None:
    place = town()
    place.begin()
    place.stop_server()
    real = [0.0]

    def clock() -> float:
        real[0] += 0.1
        return real[0]

    place.link._clock = clock
    place.link.close("done", 1.0)
    assert real[0] < 2.0


def test_the_patience_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.PATIENCE, "7.5")
    assert patience.join_patience_s() == 7.5
    monkeypatch.delenv(patience.PATIENCE)
    assert patience.join_patience_s() == patience.JOIN_PATIENCE_S
    for wrong in ("soon", "-1", "0", "inf", "nan"):
        monkeypatch.setenv(patience.PATIENCE, wrong)
        with pytest.raises(ConfigError, match=patience.PATIENCE):
            patience.join_patience_s()


def lose_next(place: Town, way: str, count: int) -> None:
    """Drop the next `count` messages of that direction on the newest line."""
    lane = place.lines[-1]._line._up if way == "send" else place.lines[-1]._line._down
    script = Script().drop(at=range(lane._seen + 1, lane._seen + 1 + count))
    lane._faults = [(fault, type("Never", (), {"random": staticmethod(lambda: 1.0)})()) for fault in script.faults]


def cut() -> list[Any]:
    return [(Script().cut_after(0).faults[0], type("Never", (), {"random": staticmethod(lambda: 1.0)})())]
