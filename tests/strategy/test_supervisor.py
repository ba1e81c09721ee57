"""A server that dies is started again, not too often; scripted servers, and no process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch  # noqa: F401  sets an environment variable on its first import
import pytest
from eventually import eventually

from lightning_async import restarts
from lightning_async.errors import ConfigError, NetworkError
from lightning_async.restarts import MOST_RESTARTS
from lightning_async.strategy import supervisor
from lightning_async.strategy.supervisor import Supervisor

ADDRESS = "tcp://127.0.0.1:4321"


class Server:
    """Ends when the test says so."""

    def __init__(self, address: str) -> None:
        self.asked, self.address, self.code, self.quitted = address, "", None, 0

    def wait_until_ready(self) -> None:
        if self.code is not None:
            raise ConfigError("refused to start")
        self.address = ADDRESS

    def poll(self) -> int | None:
        return self.code

    def tail(self) -> str:
        return "its last words"

    def quit(self) -> None:
        self.quitted += 1


class Case:
    def __init__(self, again: bool) -> None:
        self.servers: list[Server] = []
        self.supervisor = Supervisor(self.begin, "tcp://127.0.0.1:0", again)

    def begin(self, address: str) -> Any:
        self.servers.append(Server(address))
        return self.servers[-1]

    def kill(self, code: int = -9) -> None:
        """The newest one dies; return once there is another, or an error."""
        before = len(self.servers)
        self.servers[-1].code = code
        eventually(lambda: len(self.servers) > before or self.supervisor._error, what="somebody notices")


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(supervisor, "LOOK_S", 0.01)
    monkeypatch.setattr(restarts, "BACKOFF_S", 0.01)
    made: list[Case] = []

    def case(again: bool) -> Case:
        made.append(Case(again))
        return made[-1]

    yield case
    for one in made:
        one.supervisor.quit()


def test_one_that_dies_is_started_again_at_its_address(cases: Any, caplog: pytest.LogCaptureFixture) -> None:
    case = cases(again=True)
    assert case.supervisor.wait_until_ready() == ADDRESS
    case.kill()
    case.supervisor.check()
    assert [server.asked for server in case.servers] == ["tcp://127.0.0.1:0", ADDRESS]
    assert case.servers[0].quitted == 1, "its files and pipes are let go"
    assert "ended with code -9; starting it again" in caplog.text
    assert "its last words" in caplog.text


def test_one_that_dies_again_and_again_is_an_error(cases: Any) -> None:
    case = cases(again=True)
    case.supervisor.wait_until_ready()
    for _ in range(MOST_RESTARTS):
        case.kill()
        case.supervisor.check()
    case.kill(2)
    with pytest.raises(NetworkError, match=rf"code 2, as {MOST_RESTARTS} before it in 300 s.*\n?.*its last words"):
        case.supervisor.check()
    assert len(case.servers) == 1 + MOST_RESTARTS


def test_restarts_of_long_ago_do_not_count(cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "WINDOW_S", 0.0)
    case = cases(again=True)
    case.supervisor.wait_until_ready()
    for _ in range(2 * MOST_RESTARTS):
        case.kill()
    case.supervisor.check()
    assert len(case.servers) == 1 + 2 * MOST_RESTARTS


def test_without_a_state_dir_its_run_is_lost_and_that_is_said(cases: Any) -> None:
    case = cases(again=False)
    case.supervisor.wait_until_ready()
    case.kill()
    with pytest.raises(
        NetworkError, match="ended with code -9, and what it held with it; start again, with state_dir="
    ):
        case.supervisor.check()
    assert len(case.servers) == 1


def test_one_that_never_came_up_is_not_started_again(cases: Any) -> None:
    case = cases(again=True)
    case.servers[0].code = 2
    with pytest.raises(ConfigError, match="refused to start"):
        case.supervisor.check()
    with pytest.raises(ConfigError, match="refused to start"):
        case.supervisor.wait_until_ready()
    assert len(case.servers) == 1


def test_after_quit_nothing_is_started(cases: Any) -> None:
    case = cases(again=True)
    case.supervisor.wait_until_ready()
    case.supervisor.quit()
    case.servers[0].code = 0
    case.supervisor.check()
    assert len(case.servers) == 1
    assert case.servers[0].quitted == 1
