"""A run whose server has keys: training with one, revoked in the middle, and what others try beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from eventually import ENOUGH_S, eventually
from keyring import Keyring

from lightning_async import AsyncOptimizer
from lightning_async.cli.status import ask
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError, RefusedError
from lightning_async.layout import read_manifest
from lightning_async.server import ServerThread
from lightning_async.server.sharing import MOST_KEYS
from lightning_async.transport import connect
from lightning_async.transport.base import Connection
from lightning_async.transport.keys import Key
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, unpack

LAYOUT = read_manifest([["w", [3], "float32", "parameter"]])
pytestmark = pytest.mark.usefixtures("unhurried")


@pytest.fixture
def server(ring: Keyring) -> Iterator[ServerThread]:
    with ServerThread(RunConfig(local_steps=2), keys=ring.folder) as running:
        yield running


Started = tuple[torch.nn.Linear, AsyncOptimizer]
Worker = Callable[[Path], Started]


@pytest.fixture
def worker(server: ServerThread) -> Iterator[Worker]:
    """Workers that are gone at the end, however that came."""
    started: list[AsyncOptimizer] = []

    def start(file: Path) -> Started:
        model = torch.nn.Linear(4, 1)
        started.append(AsyncOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, server.address, key=file))
        return model, started[-1]

    yield start
    for optimizer in started:
        optimizer._attachment.detach()
        optimizer.engine.close("the test is over")


def step(model: torch.nn.Linear, optimizer: AsyncOptimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()


def said(server: ServerThread, key: Key, *requests: m.Request) -> list[m.Message]:
    """The answers to hand-made requests of one connection."""
    with contextlib.closing(connect(server.address, key=key)) as line:
        return [ask_over(line, number, request) for number, request in enumerate(requests, 1)]


def ask_over(line: Connection, number: int, request: m.Request) -> m.Message:
    """The answer to a hand-made request."""
    line.send(pack(Envelope(number, request)))
    frames = line.receive(ENOUGH_S)
    assert frames is not None
    return unpack(frames).message


def test_a_worker_trains_under_the_name_of_its_key(
    ring: Keyring, server: ServerThread, worker: Worker, tmp_path: Path
) -> None:
    file = ring.file(ring.key("alice"), tmp_path / "alice.key")
    model, optimizer = worker(file)
    with optimizer:
        for _ in range(6):
            step(model, optimizer)
    state = ask(server.address, ENOUGH_S, str(file))
    assert list(state["workers"]) == ["alice"]
    assert state["workers"]["alice"]["accepted"] == 3
    with pytest.raises(ConfigError, match="bears no other name"):
        AsyncOptimizer(torch.optim.SGD(model.parameters()), model, server.address, "bob", key=file)


def test_a_worker_revoked_in_the_middle_is_told_so_and_counted_out(
    ring: Keyring, server: ServerThread, worker: Worker, tmp_path: Path
) -> None:
    watcher = str(ring.file(ring.key("watcher", "observer"), tmp_path / "watcher.key"))
    model, optimizer = worker(ring.file(ring.key("alice"), tmp_path / "alice.key"))
    step(model, optimizer)
    ring.revoke("alice")
    with pytest.raises(RefusedError, match=r"'alice' was revoked by the server's owner") as caught:
        eventually(lambda: step(model, optimizer))
    assert caught.value.reason == "key"
    state = ask(server.address, ENOUGH_S, watcher)
    assert state["workers"]["alice"]["state"] == "gone"
    assert state["door"]["revoked key"] >= 1


def test_who_is_revoked_is_counted_out_without_saying_a_word(
    ring: Keyring, server: ServerThread, worker: Worker, tmp_path: Path
) -> None:
    """A quorum does not wait for it."""
    watcher = str(ring.file(ring.key("watcher", "observer"), tmp_path / "watcher.key"))
    worker(ring.file(ring.key("alice"), tmp_path / "alice.key"))
    assert ask(server.address, ENOUGH_S, watcher)["live"] == 1
    ring.revoke("alice")
    eventually(lambda: ask(server.address, ENOUGH_S, watcher)["live"] == 0)


@pytest.mark.parametrize(
    ("before", "after"),
    [("alice  worker", "alice  observer"), ("alice  worker", "alina  worker"), ("alice", "# alice")],
)
def test_who_is_no_worker_any_more_is_counted_out_while_it_beats_on(
    ring: Keyring, server: ServerThread, before: str, after: str
) -> None:
    """A quorum does not wait for it, although it is heard all the time; as what it is now it may stay."""
    watcher = ring.key("watcher", "observer")
    hello = m.Hello(worker="alice", instance="1", digest=LAYOUT.digest, tensors=LAYOUT.manifest)
    with contextlib.closing(connect(server.address, key=ring.key("alice"))) as line:
        answers = [ask_over(line, 1, hello), ask_over(line, 2, m.Beat())]
        assert [type(answer) for answer in answers] == [m.Welcome, m.Ack]
        assert len(server.coordinator.run.members.voters()) == 1
        ring.edit(before, after)
        eventually(lambda: isinstance(ask_over(line, 3, m.Beat()), m.Refused))
    report = said(server, watcher, m.Status())[0]
    assert isinstance(report, m.Report)
    assert report.state["live"] == 0
    assert report.state["quorum"]["have"] == 0


def test_an_edit_of_the_list_that_changes_nothing_of_a_worker_leaves_it_where_it_is(
    ring: Keyring, server: ServerThread
) -> None:
    hello = m.Hello(worker="alice", instance="1", digest=LAYOUT.digest, tensors=LAYOUT.manifest)
    with contextlib.closing(connect(server.address, key=ring.key("alice", workers=2))) as line:
        assert isinstance(ask_over(line, 1, hello), m.Welcome)
        bob, door = ring.key("bob"), server._service._listener.door
        assert door is not None
        known = lambda: bob.pair.public in door._allowed.callers and door._edition == door._allowed.edition  # noqa: E731
        eventually(lambda: isinstance(ask_over(line, 2, m.Beat()), m.Ack) and known())
        assert isinstance(ask_over(line, 3, m.Beat()), m.Ack)


def test_a_forged_name_is_refused_and_changes_nothing(
    ring: Keyring, server: ServerThread, worker: Worker, tmp_path: Path
) -> None:
    model, optimizer = worker(ring.file(ring.key("alice"), tmp_path / "alice.key"))
    eve = ring.key("eve")
    hello = m.Hello(worker="alice", instance="of eve")
    digest = optimizer.engine.shared.layout.digest
    answers = said(server, eve, hello, m.Push(seq=1, base=0, digest=digest), m.Leave())
    assert [type(answer) for answer in answers] == [m.Refused] * 3
    assert isinstance(answers[0], m.Refused)
    assert "bears no other name" in answers[0].detail
    with optimizer:
        for _ in range(4):
            step(model, optimizer)
    member = server.coordinator.run.members.named("alice")
    assert member is not None
    assert (member.last_seq, member.accepted) == (2, 2)


def test_an_observer_reads_and_counts_for_nothing(
    ring: Keyring, server: ServerThread, worker: Worker, tmp_path: Path
) -> None:
    watcher = ring.key("watcher", "observer")
    model, optimizer = worker(ring.file(ring.key("alice"), tmp_path / "alice.key"))
    hello = m.Hello(worker="watcher", instance="1", role="observer")
    digest = optimizer.engine.shared.layout.digest
    push = m.Push(seq=1, base=0, digest=digest)
    answers = said(server, watcher, hello, m.Pull(), push, m.Share(key="k", value="v"), m.Order(what="stop"))
    assert [type(answer) for answer in answers] == [m.Welcome, m.Params, *[m.Refused] * 3]
    assert len(server.coordinator.run.members.workers()) == 1
    assert server.coordinator.run.shared == {}
    with optimizer:
        step(model, optimizer)


def test_the_board_of_a_launch_is_its_keys_own(ring: Keyring, server: ServerThread) -> None:
    """Else whoever is on the list could say first where alice's processes write, or push her words off the board."""
    alice, eve = ring.key("alice", workers=2), ring.key("eve")
    greet = [m.Hello(worker=f"{name}/board", instance="1", role="observer") for name in ("alice", "eve")]
    stolen = [m.Share(key="launch.1/dirpath", value="/of/eve"), m.Share(key="alice:launch.1/dirpath", value="/of/eve")]
    said(server, eve, greet[1], *stolen, *(m.Share(key=f"{n}", value="x") for n in range(MOST_KEYS)), m.Leave())
    answers = said(server, alice, greet[0], m.Share(key="launch.1/dirpath", value="/of/alice"), m.Leave())
    assert answers[1] == m.Shared(key="launch.1/dirpath", value="/of/alice")
    more = [m.Share(key=f"more {n}", value="x") for n in range(MOST_KEYS + 5)]
    answers = said(server, eve, greet[1], *more, m.Share(key="launch.1/dirpath"), m.Leave())
    assert answers[-2] == m.Shared(key="launch.1/dirpath", value=None), "pushed off by her own words"
    answers = said(server, alice, greet[0], m.Share(key="launch.1/dirpath"), m.Leave())
    assert answers[1] == m.Shared(key="launch.1/dirpath", value="/of/alice")


def test_the_owner_stops_a_run(ring: Keyring, server: ServerThread) -> None:
    assert isinstance(said(server, ring.key("boss", "owner"), m.Order(what="stop"))[0], m.Ack)
    eventually(lambda: not server._thread.is_alive())
    assert server.coordinator.run.ended == "stopped by its owner"
