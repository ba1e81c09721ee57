"""Who comes in, who goes, and who gives the first parameters."""

from __future__ import annotations

import re

import pytest
import torch
from room import BUFFERS, LAYOUT, START, TENSORS, Room, raw

from lightning_async.server import joining
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.messages import Reason


def refused(reply: object, reason: Reason) -> str:
    """The detail of a Refused with this reason."""
    assert isinstance(reply, m.Refused), reply
    assert reply.reason == reason.value
    return reply.detail


def test_rank_0_is_asked_for_the_parameters_and_the_others_wait() -> None:
    room = Room(local_steps=4, workers=2)
    late = room.hello("b", rank=1)
    first = room.hello("a", rank=0)
    assert (late.initialise, first.initialise) == (False, True)
    assert first.version == -1
    assert first.config["local_steps"] == 4
    assert first.workers == 2
    refused(room.say("b", m.Pull()), Reason.UNREADY)
    refused(room.say("b", m.Push(seq=1, base=0, digest=LAYOUT.digest)), Reason.UNREADY)
    assert isinstance(room.say("a", m.Init(digest=LAYOUT.digest), (raw(START), raw(BUFFERS))), m.Ack)
    answer = room.pull("b")
    assert answer is not None
    assert [bytes(frame) for frame in answer.payload] == [raw(START), raw(BUFFERS)]
    (event,) = room.events(events.Initialised)
    assert (event.worker, event.parameters, event.buffers) == ("a", 8, 4)


def test_anybody_is_asked_when_no_rank_0_comes() -> None:
    room = Room()
    assert not room.hello("b", rank=1).initialise
    room.wait(joining.INIT_PATIENCE_S + 0.1)
    assert room.hello("b", rank=1).initialise


def test_the_initialiser_dies_and_another_is_asked() -> None:
    room = Room(beat_s=1.0, patience_s=5.0)
    assert room.hello("a", rank=0).initialise
    assert not room.hello("b", rank=1).initialise
    for _ in range(12):
        room.wait(1.0)
        room.say("b", m.Beat())
    assert [event.worker for event in room.events(events.Left)] == ["a"]
    assert room.hello("b", rank=1).initialise
    assert isinstance(room.say("b", m.Init(digest=LAYOUT.digest), (raw(START), raw(BUFFERS))), m.Ack)
    again = room.hello("a", rank=0, instance="2")
    assert (again.initialise, again.version) == (False, 0)


def test_init_twice_is_answered_alike_since_an_answer_may_be_lost() -> None:
    room = Room().begin("a")
    other = raw(START + 1)
    assert room.say("a", m.Init(digest=LAYOUT.digest), (other, raw(BUFFERS))) == m.Ack(version=0, live=1)
    assert torch.equal(room.parameters, START)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ((), r"\[32, 16\]"),
        ((raw(START),), r"\[32, 16\]"),
        ((raw(START[:7]), raw(BUFFERS)), r"\[28, 16\]"),
        ((raw(START), raw(BUFFERS[:1])), r"\[32, 4\]"),
        ((raw(START * float("nan")), raw(BUFFERS)), "NaN"),
        ((raw(START / 0), raw(BUFFERS)), "infinity"),
        ((raw(START), raw(BUFFERS * float("nan"))), "NaN"),
    ],
)
def test_first_parameters_that_do_not_fit(payload: tuple[bytes, ...], said: str) -> None:
    room = Room()
    room.hello("a", rank=0)
    detail = refused(room.say("a", m.Init(digest=LAYOUT.digest), payload), Reason.PAYLOAD)
    assert re.search(said, detail), detail
    assert room.run.version == -1
    assert isinstance(room.say("a", m.Init(digest=LAYOUT.digest), (raw(START), raw(BUFFERS))), m.Ack)


def test_a_late_joiner_starts_from_the_published_parameters() -> None:
    room = Room().begin("a")
    room.push("a", torch.ones(8))
    welcome = room.hello("late", rank=5)
    assert (welcome.version, welcome.initialise, welcome.last_seq) == (1, False, 0)
    answer = room.pull("late")
    assert answer is not None
    assert answer.message.form == "snapshot"
    assert bytes(answer.payload[0]) == raw(START - 1)


def test_a_live_name_is_taken_and_a_silent_one_can_be_inherited() -> None:
    room = Room(beat_s=1.0, patience_s=5.0).begin("a")
    room.push("a", torch.ones(8))
    assert "choose another name" in refused(room.hello("a", instance="2", peer="other"), Reason.NAME)
    room.wait(6.0)
    welcome = room.hello("a", instance="2", peer="other")
    assert welcome.last_seq == 1
    refused(room.say("a", m.Beat()), Reason.STRANGER)


def test_joining_again_keeps_the_numbers_and_moves_to_the_new_connection() -> None:
    room = Room().begin("a")
    room.push("a", torch.ones(8))
    welcome = room.hello("a", peer="new line")
    assert welcome.last_seq == 1
    assert [event.again for event in room.events(events.Joined)] == [False, True]
    refused(room.say("a", m.Beat()), Reason.STRANGER)
    assert isinstance(room.say("new line", m.Beat()), m.Ack)
    assert len(room.run.members.workers()) == 1


def test_a_peer_that_takes_another_name_leaves_the_first() -> None:
    room = Room(quorum="all").begin("a", "b")
    room.push("a", torch.ones(8))
    room.hello("c", peer="b")
    assert [event.worker for event in room.events(events.Left)] == ["b"]
    assert {member.name for member in room.run.members.workers()} == {"a", "c"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((0, ["w", [3, 2], "float32", "parameter"]), r"got 'w' with shape (3, 2) float32; this run has shape (2, 3)"),
        ((0, ["w", [2, 3], "float16", "parameter"]), "float16"),
        ((1, ["c", [2], "float32", "parameter"]), "got parameter 'c' where this run has parameter 'b'"),
        ((3, None), "this run's buffer 'norm.var' is missing"),
    ],
)
def test_another_model_is_refused_and_its_first_tensor_named(
    change: tuple[int, list[object] | None], said: str
) -> None:
    room = Room().begin("a")
    tensors = [row for row in TENSORS if row is not TENSORS[change[0]] or change[1] is not None]
    if change[1] is not None:
        tensors[change[0]] = change[1]
    detail = refused(room.hello("b", tensors=tensors), Reason.LAYOUT)
    assert said in detail
    assert "'b'" in detail


def test_another_model_that_was_there_first_is_told_when_the_run_begins() -> None:
    room = Room()
    room.hello("b", rank=1, tensors=[["w", [4], "float32", "parameter"]])
    room.ask("b", m.Pull(wait_s=5.0))
    room.begin("a")
    detail = refused(room.mail[b"b"][-1].message, Reason.LAYOUT)
    assert "got 'w' with shape (4,)" in detail
    assert {member.name for member in room.run.members.workers()} == {"a"}


def test_digest_and_tensors_must_agree() -> None:
    refused(Room().hello("a", digest="0" * 32), Reason.LAYOUT)


@pytest.mark.parametrize("tensors", [[], [["w"]], [["w", [-1], "float32", "parameter"]], [[1, 2, 3, 4]], [TENSORS[2]]])
def test_a_manifest_that_is_none(tensors: list[object]) -> None:
    refused(Room().hello("a", tensors=tensors, digest=""), Reason.LAYOUT)


def test_contradicting_arguments_are_named_with_both_values() -> None:
    room = Room(local_steps=4, outer="sgd(lr=0.5)")
    detail = refused(room.hello("a", claims={"local_steps": "16", "outer": "'sgd(lr=0.5)'"}), Reason.CONFIG)
    assert "local_steps: this worker was given 16, the run has 4" in detail
    assert "outer" not in detail
    assert isinstance(room.hello("a", claims={"local_steps": "4"}), m.Welcome)


def test_observers_read_and_do_not_count() -> None:
    room = Room(quorum="all").begin("a")
    assert isinstance(room.hello("eye", role="observer", tensors=[], digest=""), m.Welcome)
    refused(room.say("eye", m.Push(seq=1, base=0, digest=LAYOUT.digest)), Reason.ROLE)
    assert room.pull("eye") is not None
    room.push("a", torch.ones(8))
    assert room.run.version == 1
    refused(room.hello("x", role="king"), Reason.ROLE)
    refused(room.hello("", role="worker", peer="x"), Reason.ROLE)


def test_silence_and_leaving_complete_a_quorum_of_all() -> None:
    room = Room(quorum="all", beat_s=1.0, patience_s=5.0).begin("a", "b", "c")
    room.push("a", torch.ones(8))
    room.say("b", m.Leave(why="done"))
    assert room.run.version == 0
    for _ in range(7):
        room.wait(1.0)
        room.say("a", m.Beat())
    assert room.run.version == 1
    assert [(event.worker, event.why) for event in room.events(events.Left)] == [("b", "done"), ("c", "silent for 5 s")]
    refused(room.say("c", m.Beat()), Reason.STRANGER)


def test_strangers_may_only_greet_and_look() -> None:
    room = Room().begin("a")
    for message in (
        m.Pull(),
        m.Push(seq=1, base=0, digest=""),
        m.Beat(),
        m.Init(digest=""),
        m.Fetch(),
        m.Share(key="k"),
    ):
        refused(room.say("x", message), Reason.STRANGER)
    assert room.say("x", m.Status()).state["version"] == 0
    refused(room.say("x", m.Ack(version=1)), Reason.PROTOCOL)
    assert room.run.refused_strangers == 7


def test_names_that_gave_nothing_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "MOST_MEMBERS", 3)
    room = Room().begin("a")
    room.push("a", torch.ones(8))
    room.hello("b")
    room.hello("c")
    refused(room.hello("d"), Reason.LIMIT)
    room.say("b", m.Leave())
    room.say("a", m.Leave())
    assert isinstance(room.hello("d"), m.Welcome)
    assert {member.name for member in room.run.members} == {"a", "c", "d"}


def test_what_a_worker_says_of_its_machine_is_cut() -> None:
    room = Room()
    room.hello("a", host={f"key {i}": "x" * 60_000 for i in range(100)})
    assert len(str(room.say("a", m.Status()).state)) < 20_000
