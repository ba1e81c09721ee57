"""A server that dies is started again, not too often; scripted servers, and no process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import lightning.pytorch  # noqa: F401  sets an environment variable on its first import
import pytest
import torch
from eventually import ENOUGH_S, eventually
from ports import free, free_address
from torch import nn

from lightning_async import restarts
from lightning_async.errors import ConfigError, NetworkError
from lightning_async.restarts import MOST_RESTARTS
from lightning_async.strategy import supervisor
from lightning_async.strategy.last_words import LastWords
from lightning_async.strategy.supervisor import Supervisor
from lightning_async.transport import Connection, connect
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, unpack
from lightning_async.worker import Engine

ADDRESS = "tcp://127.0.0.1:4321"


def asked(line: Connection, message: m.Request) -> m.Message:
    """The answer to `message`."""
    line.send(pack(Envelope(1, message)))
    frames = line.receive(ENOUGH_S)
    assert frames is not None
    return unpack(frames).message


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


def test_who_asks_for_a_server_that_is_gone_for_good_is_told_so(cases: Any) -> None:
    case = cases(again=False)
    case.supervisor.address = address = free_address()
    case.supervisor._thread.start()
    case.kill()
    eventually(lambda: case.supervisor._words, what="its last words")
    line = connect(address)
    try:
        line.send([b"", b"no message"])
        answers = [asked(line, message) for message in (m.Status(), m.Beat(), m.Leave())]
    finally:
        line.close()
    for answer in answers:
        assert isinstance(answer, m.Refused)
        assert answer.reason == "lost"
        assert "ended with code -9" in answer.detail
        assert "its last words" in answer.detail
    case.supervisor.quit()
    assert free(address)


def test_a_worker_of_a_server_that_is_gone_for_good_ends_at_once(cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its patience is an hour, and every wait of it ends with what rank 0 knows."""
    monkeypatch.setenv("LIGHTNING_ASYNC_PATIENCE_S", "3600")
    model = nn.Linear(2, 1)
    engine = Engine(free_address(), model, [torch.optim.SGD(model.parameters(), lr=0.1)])
    words = LastWords(engine.address, "it died thrice; mend it")
    try:
        with pytest.raises(NetworkError, match=r"is gone, and the run ends here: it died thrice; mend it"):
            engine.start()
    finally:
        engine.close(goodbye_s=0.0)
        words.close()


@pytest.mark.parametrize(
    ("looks", "ends_at", "hurries_at", "now"),
    [(4, 0, 99, [0, 5, 9, 10]), (5, 4, 99, [0, 5, 10, 20, 30]), (3, 99, 2, [0, 5, 9]), (4, 99, 99, [0, 30, 59, 60])],
    ids=["each has had its turn", "a process goes on", "a hurry", "a process that never ends"],
)
def test_how_long_the_last_words_are_said(looks: int, ends_at: int, hurries_at: int, now: list[int]) -> None:
    seen: list[int] = []

    def clock() -> float:
        return float(now[min(len(seen), len(now)) - 1]) if seen else 0.0

    def hurry() -> bool:
        seen.append(1)
        return len(seen) > hurries_at

    words = LastWords(free_address(), "gone", clock)
    try:
        words.wait(lambda: len(seen) > ends_at, hurry)
    finally:
        words.close()
    assert len(seen) == looks


def test_an_address_that_another_has_taken_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        words = LastWords(f"tcp://127.0.0.1:{other.getsockname()[1]}", "gone")
        words.wait(lambda: False, lambda: False)
        words.close()
    assert "cannot be told" in caplog.text
