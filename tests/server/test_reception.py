"""Who may say what to a server with keys, message by message, and the owner's orders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from keyring import Keyring

from lightning_async.errors import ConfigError
from lightning_async.server.probing import Probes
from lightning_async.server.reception import Duties, Reception
from lightning_async.transport.door import Door
from lightning_async.transport.freight import Moving
from lightning_async.transport.keys import Key
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope
from lightning_async.wire.messages import REQUESTS

SAMPLES: dict[type, m.Message] = {
    m.Hello: m.Hello(worker="NAME", instance="1"),
    m.Init: m.Init(digest=""),
    m.Push: m.Push(seq=1, base=0, digest=""),
    m.Pull: m.Pull(),
    m.Beat: m.Beat(),
    m.Leave: m.Leave(),
    m.Lease: m.Lease(stream="", length=1, count=1),
    m.Share: m.Share(key="k", value="v"),
    m.Fetch: m.Fetch(),
    m.Load: m.Load(keys=[], shapes=[], dtypes=[]),
    m.Status: m.Status(),
    m.Pardon: m.Pardon(worker="w", token=""),
    m.Enrol: m.Enrol(token="", name="x"),
    m.Order: m.Order(what="stop"),
    m.Probe: m.Probe(),
}
READS = {m.Pull, m.Beat, m.Leave, m.Fetch, m.Status, m.Probe, m.Enrol}
MAY: dict[str, set[type]] = {
    "": {m.Enrol},
    "revoked": set(),
    "observer": READS,
    "owner": READS | {m.Order, m.Pardon},
    "worker": set(REQUESTS) - {m.Order},
}


class Desk:
    """A reception with real keys; what was ordered is in `done`."""

    def __init__(self, folder: Path, token: str = "") -> None:
        self.ring = Keyring(folder)
        self.keys = {role: self.ring.key(role, role) for role in ("worker", "observer", "owner")}
        self.keys["revoked"] = self.ring.key("revoked")
        self.ring.revoke("revoked")
        self.keys[""] = self.ring.stranger()
        self.done: list[str] = []
        self.door = Door(self.ring.folder)
        duties = Duties(
            lambda why: self.done.append(why), lambda: self.done.append("snapshot"), self._pardon, self._change
        )
        self.reception = Reception(self.door, token, duties, lambda: m.Ack(version=7), Probes(lambda: None))

    def _pardon(self, name: str) -> None:
        if name == "nobody":
            raise ConfigError("in quarantine are: w")
        self.done.append(f"pardon {name}")

    def _change(self, values: Mapping[str, Any]) -> None:
        if "seed" in values:
            raise ConfigError("seed: cannot be changed")
        self.done.append(f"change {dict(values)}")

    def say(self, who: str | Key, message: m.Message) -> m.Reply | None:
        key = self.keys[who] if isinstance(who, str) else who
        answer = self.reception.receive(b"\0\0\0\0\1" + key.pair.public, Envelope(5, message))
        assert answer is None or answer.id == 5
        return None if answer is None else answer.message


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "server")


def test_every_request_has_a_sample() -> None:
    assert tuple(SAMPLES) == REQUESTS


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize("kind", REQUESTS)
def test_what_each_role_may_say(desk: Desk, role: str, kind: type) -> None:
    message = SAMPLES[kind]
    if isinstance(message, m.Hello):
        message = m.Hello(worker=role or "x", instance="1")
    answer = desk.say(role, message)
    refused = (
        isinstance(answer, m.Refused) and answer.reason == "key" and "invitation is not known" not in answer.detail
    )
    assert refused is (kind not in MAY[role]), answer
    assert sum(desk.door.counts.values()) == refused + ("wrong invitation" in desk.door.counts)


@pytest.mark.parametrize("role", ["observer", "owner"])
def test_who_is_no_worker_reads(desk: Desk, role: str) -> None:
    assert desk.say(role, m.Hello(worker=f"{role}/board", instance="1", role="observer")) is None
    assert desk.say(role, m.Share(key="k")) is None
    assert isinstance(desk.say(role, m.Hello(worker=role, instance="1", role="worker")), m.Refused)
    assert isinstance(desk.say(role, m.Hello(worker=role, instance="1", role="owner")), m.Refused) is False


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("alice", True),
        ("alice/1", True),
        ("alice/2", True),
        ("alice/3", False),
        ("alice/0", False),
        ("alice/01", False),
        ("alice/-1", False),
        ("alice/²", False),
        ("alice/1/1", False),
        ("alice/", False),
        ("alice/" + "9" * 190, False),
        ("bob", False),
        ("bob/1", False),
        ("alicex", False),
        ("Alice", False),
        ("", False),
    ],
)
def test_a_worker_has_the_name_of_its_key(desk: Desk, name: str, taken: bool) -> None:
    alice = desk.ring.key("alice", workers=3)
    desk.ring.key("bob", workers=3)
    desk.door._refresh()
    answer = desk.say(alice, m.Hello(worker=name, instance="1"))
    assert (answer is None) is taken
    if not taken:
        assert isinstance(answer, m.Refused)
        assert desk.door.counts["not allowed to worker"] == 1


def test_a_board_has_the_name_of_its_key_too(desk: Desk) -> None:
    for name, taken in (("worker/board-1-2", True), ("worker", True), ("other/board", False), ("board", False)):
        assert (desk.say("worker", m.Hello(worker=name, instance="1", role="observer")) is None) is taken


def test_the_owner_is_obeyed(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.ring.key("alice")
    for what, name in (("stop", ""), ("snapshot", ""), ("pardon", "w"), ("revoke", "alice")):
        assert desk.say("owner", m.Order(what=what, name=name)) == m.Ack(version=7)
    assert desk.say("owner", m.Pardon(worker="v", token="")) == m.Ack(version=7)
    assert desk.say("owner", m.Order(what="change", values={"quorum": 2})) == m.Ack(version=7)
    assert desk.done == ["stopped by its owner", "snapshot", "pardon w", "pardon v", "change {'quorum': 2}"]
    assert "alice  revoked" in (desk.ring.folder / "allowed.txt").read_text()
    said = ["stop", "snapshot", "pardon w", "revoke alice", "pardon v", "change quorum=2"]
    assert caplog.messages == [f"the owner has ordered: {order}" for order in said]


def test_what_cannot_be_done_is_said(desk: Desk) -> None:
    changes = (m.Order(what="change", values={"seed": 1}), m.Order(what="dance"))
    for order in (*changes, m.Order(what="pardon", name="nobody"), m.Order(what="revoke", name="nobody")):
        answer = desk.say("owner", order)
        assert isinstance(answer, m.Refused)
        assert answer.reason == "protocol"
    assert desk.done == []


def test_without_a_key_the_token_gives_the_right(tmp_path: Path) -> None:
    done: list[str] = []
    duties = Duties(done.append, lambda: done.append("snapshot"), done.append, lambda values: done.append("change"))
    for token, given, right in (("t", "t", True), ("t", "", False), ("t", "x", False), ("", "", False)):
        reception = Reception(None, token, duties, lambda: m.Ack(version=7), Probes(lambda: None))
        answer = reception.receive(b"p", Envelope(5, m.Order(what="stop", token=given)))
        assert (answer == Envelope(5, m.Ack(version=7))) is right, "else it is the coordinator that refuses"
        assert reception.receive(b"p", Envelope(6, m.Order(what="revoke", name="x", token=given))) is None or right
    assert done == ["stopped by its owner"]


def test_a_report_says_what_was_turned_away(desk: Desk) -> None:
    desk.say("", m.Status())
    report = desk.reception.completed(Envelope(3, m.Report(state={"a": 1})), {})
    assert report == Envelope(3, m.Report(state={"a": 1, "door": {"unknown key": 1}}))
    other = Envelope(3, m.Ack(version=1))
    assert desk.reception.completed(other, {"w": Moving((1, 2), (0, 0))}) is other


def test_a_report_says_of_its_workers_what_is_on_its_way(desk: Desk) -> None:
    moving = {"a": Moving((3, 10), (0, 0)), "b": Moving((1, 2), (5, 7)), "a watcher": Moving((0, 0), (1, 2))}
    told = desk.reception.completed(Envelope(3, m.Report(state={"workers": {"a": {}, "b": {}, "c": {}}})), moving)
    assert isinstance(told.message, m.Report)
    up, both = {"up": {"bytes": 3, "total": 10}}, {"up": {"bytes": 1, "total": 2}, "down": {"bytes": 5, "total": 7}}
    assert told.message.state["transfers"] == {"a": up, "b": both}
