"""The embedded server as its owner uses it: it comes up, it says why it does not, it ends when it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from embedding import GOODBYE, ask, hello, ready, say
from eventually import ENOUGH_S, eventually
from ports import free

from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError, NetworkError
from lightning_async.strategy.embedded import EmbeddedServer
from lightning_async.transport import connect
from lightning_async.wire import messages as m


@pytest.fixture
def start() -> Iterator[Callable[..., EmbeddedServer]]:
    """Starts servers, which end with the test. By default they never count a silent worker out."""
    started: list[EmbeddedServer] = []

    def made(patience_s: float = 3600.0, **options: Any) -> EmbeddedServer:
        started.append(ready(RunConfig(patience_s=patience_s), **options))
        return started[-1]

    yield made
    for server in started:
        server.quit()


@pytest.fixture
def endless_goodbyes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that would wait for an hour until their workers have left; and owners that wait for a server to end."""
    (tmp_path / "sitecustomize.py").write_text(GOODBYE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("lightning_async.strategy.embedded.QUIT_S", ENOUGH_S)


def test_it_serves_and_quits(start: Callable[..., EmbeddedServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_async.strategy.embedded.QUIT_S", ENOUGH_S)
    server = start()
    assert isinstance(ask(server.address, m.Status()), m.Report)
    assert server.poll() is None
    server.quit()
    assert server.poll() == 0, "it has ended by itself"
    assert free(server.address)
    server.quit()


@pytest.mark.usefixtures("endless_goodbyes")
def test_quit_does_not_wait_for_workers(start: Callable[..., EmbeddedServer]) -> None:
    server = start()
    assert isinstance(ask(server.address, hello("a")), m.Welcome)
    server.quit()
    assert server.poll() == 0, "it was killed because it waited for its worker"


def test_a_run_goes_on_in_the_next_embedded_server(start: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    first = start(state_dir=tmp_path)
    line = connect(first.address)
    digest = hello("a").digest
    try:
        say(line, 1, hello("a"))
        say(line, 2, m.Init(digest=digest), (bytes(8), b""))
        say(line, 3, m.Push(seq=1, base=0, digest=digest), (bytes(8), b""))
        say(line, 4, m.Leave())
    finally:
        line.close()
        first.quit()
    second = start(state_dir=tmp_path)
    report = ask(second.address, m.Status())
    assert isinstance(report, m.Report)
    assert report.state["version"] == 1
    second.quit()
    with pytest.raises(ConfigError, match="local_steps is 16 in the snapshot, 4 here"):
        ready(RunConfig(local_steps=4), state_dir=tmp_path)


def test_a_state_dir_that_another_server_uses_is_said(start: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    start(state_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"refused to start: another server keeps its run in .*process \d+ on"):
        ready(RunConfig(), state_dir=tmp_path)


def test_a_bad_configuration_is_said() -> None:
    with pytest.raises(ConfigError, match="unknown aggregator 'median_of_hopes'"):
        ready(RunConfig(aggregation="median_of_hopes"))


def test_a_taken_port_is_said(start: Callable[..., EmbeddedServer]) -> None:
    with pytest.raises(ConfigError, match="cannot listen at"):
        ready(RunConfig(), address=start().address)


def test_a_public_address_is_refused_without_asking_for_it() -> None:
    with pytest.raises(ConfigError, match="other machines"):
        ready(RunConfig(), address="tcp://0.0.0.0:0")


def test_a_child_that_dies_at_its_start_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.write_text('#!/bin/sh\necho "no idea what $1 means" >&2\nexit 2\n')
    other.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(other))
    with pytest.raises(NetworkError, match=r"ended with code 2 at its start:\nno idea what -m means"):
        ready(RunConfig())


def test_what_the_server_logs_reaches_the_owner(
    start: Callable[..., EmbeddedServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = start()
    line = connect(server.address)
    try:
        line.send([b"", b"garbage"])
        assert eventually(lambda: server.poll() is None and "could not be read" in caplog.text)
    finally:
        line.close()
