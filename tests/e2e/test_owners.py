"""The embedded server never outlives its owner, whatever becomes of that; and what it does with signals and lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from children import Children
from embedding import GOODBYE, ask, hello
from eventually import ENOUGH_S, eventually
from ports import free

from lightning_async.wire import messages as m

OWNER = """
import os, sys, time
from lightning_async.config import RunConfig
from lightning_async.strategy.embedded import EmbeddedServer
server = EmbeddedServer.begin(RunConfig())
server.wait_until_ready()
print(server.address, server._process.pid, flush=True)
"""
FORKED = """
if os.fork() == 0:
    time.sleep(600); os._exit(0)
print("forked", flush=True)
time.sleep(600)
"""
INTERRUPTED = """
try:
    print("ready", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print(server.poll(), server.tail() == '', flush=True)
    server.quit()
"""


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def owner(children: Children, then: str) -> tuple[subprocess.Popen[str], str, int]:
    """A process that owns a server: (process, the server's address, the server's pid)."""
    process = children.start([sys.executable, "-c", OWNER + then])
    address, pid = line_of(process).split()
    return process, address, int(pid)


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(pid: int, address: str) -> bool:
    return bool(eventually(lambda: not running(pid), what="an orphan") and free(address))


def test_the_server_goes_with_a_killed_owner(children: Children) -> None:
    process, address, pid = owner(children, "time.sleep(600)")
    process.kill()
    process.wait()
    assert gone(pid, address)


def test_the_server_goes_with_a_killed_owner_whose_pipe_a_forked_helper_keeps(children: Children) -> None:
    process, address, pid = owner(children, FORKED)
    assert line_of(process) == "forked"
    process.kill()
    process.wait()
    assert gone(pid, address)


@pytest.mark.parametrize("then", ["", "raise SystemExit(3)", "raise RuntimeError('broken')"])
def test_the_server_goes_with_an_owner_that_forgot_it(children: Children, then: str) -> None:
    process, address, pid = owner(children, then)
    process.wait(ENOUGH_S)
    assert gone(pid, address)


def test_ctrl_c_reaches_the_owner_and_not_the_server(children: Children) -> None:
    process, _, _ = owner(children, INTERRUPTED)
    assert line_of(process) == "ready"
    os.killpg(process.pid, signal.SIGINT)
    assert line_of(process).split() == ["None", "True"]
    assert process.wait(ENOUGH_S) == 0


def embedded(children: Children, first: str, before: str = "") -> subprocess.Popen[str]:
    """The child itself, without its usual owner."""
    serve = "from lightning_async.cli.main import main; raise SystemExit(main(['serve', '--embedded']))"
    code = f"{before}\n{serve}"
    process = children.start([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    write(process, first)
    return process


def write(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def close_stdin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def ready(children: Children, **config: object) -> tuple[subprocess.Popen[str], str]:
    """An embedded server that listens, and its address; it would wait for an hour until its workers have left."""
    process = embedded(children, json.dumps({"config": config, "address": "tcp://127.0.0.1:0", "run": "x"}), GOODBYE)
    word, address = line_of(process).split()
    assert word == "READY"
    return process, address


@pytest.mark.parametrize("first", ["", "no json", "[]", '{"config": {"stale": 1}}', '{"colour": 1}'])
def test_a_bad_first_line_fails_with_code_two(children: Children, first: str) -> None:
    process = embedded(children, first)
    out, _ = process.communicate(timeout=ENOUGH_S)
    assert out.startswith("FAILED ")
    assert out.count("\n") == 1
    assert process.returncode == 2


def test_sigint_is_ignored_and_sigterm_stops_without_waiting_for_workers(children: Children) -> None:
    process, address = ready(children)
    assert isinstance(ask(address, hello("a")), m.Welcome)
    process.send_signal(signal.SIGINT)
    assert isinstance(ask(address, m.Status()), m.Report)
    process.send_signal(signal.SIGTERM)
    assert process.wait(ENOUGH_S) == 128 + signal.SIGTERM


def test_a_closed_stdin_ends_it(children: Children) -> None:
    process, _ = ready(children)
    close_stdin(process)
    assert process.wait(ENOUGH_S) == 0
