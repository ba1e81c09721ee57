"""`serve --supervise`: a server that dies is started again, not too often, and told what its supervisor is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import Children
from eventually import ENOUGH_S, eventually
from ports import free, free_address

from lightning_async import restarts
from lightning_async.cli import main as cli
from lightning_async.cli.status import ask
from lightning_async.cli.supervise import Watch
from lightning_async.errors import NetworkError
from lightning_async.persistence import lock

WATCH = (  # of the program that is its argument, and says so before a signal can come
    "import sys; from lightning_async import restarts; restarts.BACKOFF_S = float(sys.argv[1]);"
    "from lightning_async.cli.supervise import Watch; sys.exit(Watch([sys.executable, '-c', sys.argv[2]]).run())"
)
DEAF_ONCE = """
import os, signal, sys
told = []
def handler(number, frame):
    told.append(number)
    print("got", number, flush=True)
    if len(told) == 2:
        os._exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, handler)
print("ready", os.getpgid(0), flush=True)
while True:
    signal.pause()
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(restarts, "BACKOFF_S", 0.01)
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


def program(tmp_path: Path, *codes: int) -> list[str]:
    """A command that ends with each of these codes in turn; below 0: by that signal. It notes each of its lives."""
    text = f"""
import os, pathlib
lives = pathlib.Path({str(tmp_path / "lives")!r})
with lives.open("a") as file:
    file.write("x")
code = {codes!r}[lives.stat().st_size - 1]
os.kill(os.getpid(), -code) if code < 0 else os._exit(code)
"""
    return [sys.executable, "-S", "-c", text]


def lives(tmp_path: Path) -> int:
    return (tmp_path / "lives").stat().st_size


def test_one_that_dies_is_started_again_until_it_ends_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert Watch(program(tmp_path, -signal.SIGKILL, 1, 0)).run() == 0
    assert lives(tmp_path) == 3
    assert "ended with code -9; starting it again" in caplog.text


def test_what_is_refused_is_not_started_again(tmp_path: Path) -> None:
    assert Watch(program(tmp_path, 2)).run() == 2
    assert lives(tmp_path) == 1


def test_one_that_dies_again_and_again_is_given_up_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"code -9, as 3 before it in 300 s\. Mend what it says and start again"):
        Watch(program(tmp_path, *[-9] * 5)).run()
    assert lives(tmp_path) == 4


def test_deaths_of_long_ago_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "WINDOW_S", 0.0)
    assert Watch(program(tmp_path, *[-9] * 6, 0)).run() == 0
    assert lives(tmp_path) == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_goes_on_once_and_nothing_is_started_after_it(children: Children, number: int) -> None:
    process = children.start([sys.executable, "-c", WATCH, "0.01", DEAF_ONCE])
    assert process.stdout is not None
    assert int(process.stdout.readline().split()[1]) != process.pid, "what a terminal sends to us, it does not get too"
    os.killpg(process.pid, number)
    assert process.stdout.readline() == f"got {int(number)}\n"
    os.killpg(process.pid, number)
    rest = process.stdout.read()
    assert rest == f"got {int(number)}\n", "each once, and no other life"
    assert process.wait(ENOUGH_S) == 128 + number


def test_a_signal_while_it_waits_for_the_next_start_ends_it(children: Children) -> None:
    dies = "import os; print('dies', flush=True); os._exit(1)"
    process = children.start([sys.executable, "-c", WATCH, "3600.0", dies], stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "dies\n"
    assert "starting it again in 3600.0 s" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(ENOUGH_S) == 143


def pid_in(folder: Path) -> int:
    """The process that has the state_dir; 0 for none."""
    text = (folder / lock.NAME).read_text() if (folder / lock.NAME).exists() else ""
    return int(text.split()[1]) if text.endswith("\n") else 0


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def supervised(children: Children, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """A supervised server that answers: its supervisor, its address, its state_dir."""
    address, folder = free_address(), tmp_path / "state"
    command = [sys.executable, "-m", "lightning_async", "serve", "--supervise", "--address", address]
    process = children.start([*command, "--state-dir", str(folder)], stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("join:")
    yield process, address, folder
    process.kill()
    eventually(lambda: not running(pid_in(folder)), what="the server ends with its supervisor")


def test_a_killed_server_is_back_at_its_address_with_its_run_and_ends_when_told(
    supervised: tuple[subprocess.Popen[str], str, Path],
) -> None:
    process, address, folder = supervised
    first, before = pid_in(folder), ask(address, ENOUGH_S)
    assert first not in (0, process.pid)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: pid_in(folder) not in (0, first), what="another server")
    assert ask(address, ENOUGH_S)["run_id"] == before["run_id"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(ENOUGH_S) == 143
    assert not running(pid_in(folder))
    assert free(address)
    assert cli.main(["status", "--state", str(folder)]) == 0


def test_a_server_does_not_outlive_its_supervisor(supervised: tuple[subprocess.Popen[str], str, Path]) -> None:
    process, address, folder = supervised
    process.kill()
    eventually(lambda: not running(pid_in(folder)), what="its end")
    assert free(address)
    assert cli.main(["resume", "--state", str(folder), "--check"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("serve",), "--supervise needs --state-dir"),
        (("serve", "--state-dir", "x", "--address", "tcp://127.0.0.1:0"), "--supervise needs a port"),
        (("resume", "--state", "x", "--cut", "3"), "cut first"),
    ],
)
def test_what_cannot_be_supervised_is_said(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--supervise"]) == 2
    assert said in capsys.readouterr().err
