"""`change`: what an owner may change of a run that goes on, when it holds, what is refused, and that it is replayed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from room import Room
from test_history import Served
from test_recording import Life, Taped, check

from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.server import report
from lightning_async.server.changing import CHANGEABLE, FIXED
from lightning_async.server.history import Tale, read_run, stored_config, tell
from lightning_async.telemetry import events
from lightning_async.wire import messages as m

DOCS = Path(__file__).parents[2] / "docs" / "security.md"
ONES = torch.ones(8) * 0.01


def changed(room: Room, **values: Any) -> list[events.Changed]:
    """What was told of it."""
    brain: Any = room.recorder if isinstance(room, Taped) else room.coordinator
    actions = brain.change(values, room.now)
    return [action.event for action in actions if isinstance(getattr(action, "event", None), events.Changed)]


def test_every_field_is_either_and_the_docs_say_which() -> None:
    assert CHANGEABLE.keys() | FIXED.keys() == {field.name for field in fields(RunConfig)}
    assert not CHANGEABLE.keys() & FIXED.keys()
    page = DOCS.read_text().partition("## Changing")[2]
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(CHANGEABLE)
    assert all(f"`{name}`" in page for name in FIXED)


def test_the_next_step_goes_by_a_new_quorum() -> None:
    room = Room(quorum=3).begin("a", "b", "c")
    room.push("a", ONES)
    room.push("b", ONES)
    assert room.run.version == 0
    (told,) = changed(room, quorum=2)
    assert (told.name, told.before, told.after) == ("quorum", "3", "2")
    assert room.run.version == 1, "two were there already"
    assert report.state(room.run, room.now)["config"]["quorum"] == 2
    assert report.state(room.run, room.now)["changed"] == {"quorum": {"given": 3, "now": 2}}
    assert changed(room, quorum=2) == []
    changed(room, quorum=3)
    assert report.state(room.run, room.now)["changed"] == {}


def test_staleness_and_weight_hold_for_the_next_update() -> None:
    room = Room(staleness="fixed(bound=1)").begin("a", "b")
    for _ in range(4):
        room.push("a", ONES, base=room.run.version)
    assert not room.push("b", ONES, base=0).accepted
    changed(room, staleness="fixed(bound=10)", weight="constant")
    assert room.push("b", ONES, base=0).accepted
    assert room.run.stepper is not None
    assert room.run.stepper._rules.weight.of(7) == 1.0


def test_a_run_ends_where_it_is_told_to_now() -> None:
    room = Room(local_steps=1).begin("a")
    room.push("a", ONES)
    changed(room, total_steps=2)
    assert not room.run.ended
    assert room.push("a", ONES, base=room.run.version).stop
    with pytest.raises(ConfigError, match="the run has ended"):
        changed(room, total_steps=5)


def test_nobody_is_in_quarantine_any_more() -> None:
    room = Room(aggregation="trimmed_mean(f=1)", quorum=3, quarantine_below=0.5).begin("a", "b", "c")
    member = room.run.members.named("a")
    assert member is not None
    member.barred_until = 1000
    changed(room, quarantine_below=0.4)
    assert member.quarantined
    changed(room, quarantine_below=None)
    assert not member.quarantined


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, "nothing to change"),
    ({}, {"no_such": 1}, "no such thing"),
    ({}, {"quorum": "all"}, "train by"),
    ({"quorum": "all"}, {"quorum": 1}, "train by"),
    ({}, {"quorum": 0}, "integer >= 1"),
    ({}, {"quorum": True}, "expected a number"),
    ({}, {"quorum": [1]}, "integer >= 1"),
    ({}, {"quorum": {"a": 1}}, "integer >= 1"),
    ({}, {"grace_s": True}, "expected a number"),
    ({}, {"grace_s": "never"}, "wrong type"),
    ({}, {"grace_s": -1.0}, "seconds >= 0"),
    ({}, {"grace_s": None}, "wrong type"),
    ({}, {"staleness": "fixed(bound=0)"}, "stays 0"),
    ({}, {"staleness": 0}, "stays 0"),
    ({}, {"staleness": "no_such(1)"}, "no_such"),
    ({}, {"staleness": "__import__('os')"}, "staleness|__import__"),
    ({"staleness": "fixed(bound=0)"}, {"staleness": "adaptive"}, "stays 0"),
    ({}, {"scheduler": "own(path='os:getcwd')"}, "imports code"),
    ({}, {"quarantine_below": 0.5}, "choose a robust rule"),
    ({"aggregation": "trimmed_mean(f=1)", "quorum": 4}, {"quorum": 2}, "can never satisfy"),
    ({"aggregation": "kardam(f=1)"}, {"quorum": 3}, "judges every update"),
    ({}, {"grace_s": 1.0, "seed": 5}, "order of the data"),
    ({}, {"grace_s": 1.0, "quorum": -5}, "integer >= 1"),
    *(({}, {name: getattr(RunConfig(), name)}, "cannot be changed while a run goes on") for name in FIXED),
]


@pytest.mark.parametrize(("config", "wanted", "said"), REFUSED, ids=str)
def test_what_cannot_be_is_refused_and_nothing_of_it_is_done(
    config: dict[str, Any], wanted: dict[str, Any], said: str
) -> None:
    room = Taped(**config).begin("a", "b")
    assert isinstance(room, Taped)
    before, records = report.state(room.run, room.now), room.tape.submitted
    with pytest.raises(ConfigError, match=said):
        changed(room, **wanted)
    assert report.state(room.run, room.now) == before
    assert room.tape.submitted == records


def test_steps_that_are_in_already_are_no_change() -> None:
    room = Room(local_steps=4).begin("a")
    room.push("a", ONES, steps=4)
    with pytest.raises(ConfigError, match="4 are in; `lightning-async stop`"):
        changed(room, total_steps=4)
    changed(room, total_steps=5)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=3,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(RunConfig().as_dict())), VALUES, max_size=3))
def test_whatever_is_asked_it_is_done_whole_or_not_at_all(wanted: Mapping[str, Any]) -> None:
    room = Room().begin("a")
    before = room.run.config
    try:
        room.coordinator.change(wanted, room.now)
    except ConfigError:
        assert room.run.config is before
    else:
        assert wanted.keys() <= CHANGEABLE.keys()
    assert room.push("a", ONES).accepted or room.run.ended


CHOICES: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"quorum": 3}, [{"quorum": 1}, {"quorum": 2}, {"quorum": 3}, {"grace_s": 0.5}, {"grace_s": 0.0}]),
    ({"quorum": 2}, [{"staleness": "fixed(bound=2)"}, {"staleness": "adaptive"}, {"weight": "constant"}]),
    (
        {"quorum": 3, "aggregation": "trimmed_mean(f=1)", "quarantine_below": 0.6},
        [{"quarantine_below": None}, {"quarantine_below": 0.9}, {"quorum": 4, "grace_s": "auto"}],
    ),
    ({"quorum": "all"}, [{"barrier_s": 2.0}, {"barrier_s": None}, {"barrier_s": 9.0}, {"scheduler": "capability"}]),
]


class Ordered(Life):
    """A life with an owner who changes things."""

    def __init__(self, room: Taped, seed: int, choices: list[dict[str, Any]]) -> None:
        super().__init__(room, seed)
        self.choices, self.changes = choices, 0

    def wait(self, name: str) -> None:
        if self.chance.random() < 0.5:
            changed(self.room, **self.chance.choice(self.choices))
            self.changes += 1
        super().wait(name)


@pytest.mark.parametrize(("config", "choices"), CHOICES, ids=str)
def test_replay_with_changes_is_the_run(config: dict[str, Any], choices: list[dict[str, Any]]) -> None:
    for seed in range(2):
        room = Taped(**config).begin(*"abcde")
        assert isinstance(room, Taped)
        life = Ordered(room, seed, choices)
        life.go(200)
        assert life.changes > 3
        assert check(room).verified > 0


def test_a_change_outlives_the_server_until_the_owner_says_otherwise() -> None:
    room = Taped(quorum=3).begin("a", "b", "c")
    assert isinstance(room, Taped)
    changed(room, quorum=2, grace_s=1.5)
    room.restart()
    assert (room.run.config.quorum, room.run.config.grace_s) == (2, 1.5)
    room.restart(patience_s=20.0)
    assert (room.run.config.quorum, room.run.config.patience_s) == (2, 20.0)
    room.restart(quorum=4)
    assert (room.run.config.quorum, room.run.config.grace_s) == (4, 1.5), "his newest word counts"
    room.restart()
    assert (room.run.config.quorum, room.run.config.grace_s) == (4, 1.5)
    changed(room, quorum=1)
    assert room.run.changed["quorum"] == {"given": 4, "now": 1}
    check(room)


def test_what_a_restart_refuses_a_change_may_do_and_it_stays() -> None:
    room = Taped(staleness="fixed(bound=5)").begin("a")
    assert isinstance(room, Taped)
    changed(room, staleness="adaptive", weight="constant")
    room.restart()
    assert (room.run.config.staleness, room.run.config.weight) == (room.run.rules.policy.spec, "constant()")
    assert room.run.config.staleness.startswith("adaptive")
    with pytest.raises(ConfigError, match="belongs to another configuration"):
        room.restart(staleness="fixed(bound=7)")


def test_a_worker_with_the_old_argument_comes_in() -> None:
    room = Room(quorum=3).begin("a")
    changed(room, quorum=2)

    def hello(claim: str) -> m.Reply:
        return room.say("b", m.Hello(worker="b", instance="1", role="observer", claims={"quorum": claim}))

    assert isinstance(hello("4"), m.Refused)
    for claim in ("3", "2"):
        welcome = hello(claim)
        assert isinstance(welcome, m.Welcome)
        assert welcome.config["quorum"] == 2


def test_the_old_argument_may_be_written_otherwise() -> None:
    room = Room(grace_s=1.0).begin("a")
    changed(room, grace_s=2.0)
    for claim, kind in (("1", m.Welcome), ("2", m.Welcome), ("1.5", m.Refused)):
        assert isinstance(
            room.say("b", m.Hello(worker="b", instance="1", role="observer", claims={"grace_s": claim})), kind
        )


def test_a_state_dir_keeps_it_and_is_read_without_a_server(tmp_path: Path) -> None:
    with Served(tmp_path / "run", quorum=2) as one:
        one.begin("a", "b")
        one.recorder.change({"quorum": 1, "total_steps": 999}, 1e9)
        one.recorder.settle()
    config, _ = stored_config(tmp_path / "run")
    assert (config.quorum, config.total_steps) == (2, None), "what resume gives the next server"
    with Served(tmp_path / "run", **{**config.as_dict()}) as again:
        assert (again.run.config.quorum, again.run.config.total_steps) == (1, 999)
    assert read_run(tmp_path / "run").run.config.quorum == 1
    told = list(tell(tmp_path / "run"))
    assert not told[-1].state.differing
    plain, other = Tale({}, frozenset()), Tale({"quorum": 3}, frozenset())
    for step in tell(tmp_path / "run"):
        plain.take(step)
        other.take(step)
    assert plain.coordinator is not None
    assert other.coordinator is not None
    assert plain.coordinator.run.config.quorum == 1
    assert (other.coordinator.run.config.quorum, other.coordinator.run.config.total_steps) == (3, 999)
