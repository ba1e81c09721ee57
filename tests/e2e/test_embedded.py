"""The embedded server with real processes: it comes up, it says why it does not, and it never outlives its owner."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError, NetworkError
from lightning_async.strategy.embedded import EmbeddedServer
from lightning_async.transport import connect
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, unpack

DEAD_SERVER_S = 4.0

OWNER = """
import sys, time
from lightning_async.config import RunConfig
from lightning_async.strategy.embedded import EmbeddedServer
server = EmbeddedServer.start(RunConfig())
print(server.address, server._process.pid, flush=True)
{then}
"""


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    server = EmbeddedServer.start(RunConfig(patience_s=3.0))
    yield server
    server.quit()


def ask(address: str, message: m.Request, request: int = 1) -> m.Message:
    """One request over a connection of its own."""
    line = connect(address)
    try:
        line.send(pack(Envelope(request, message)))
        frames = line.receive(10.0)
        assert frames is not None, "no answer within 10 s"
        return unpack(frames).message
    finally:
        line.close()


def hello(name: str) -> m.Hello:
    from lightning_async.layout import read_manifest

    tensors = [["w", [2], "float32", "parameter"]]
    return m.Hello(worker=name, instance="1", tensors=tensors, digest=read_manifest(tensors).digest)


def free(address: str) -> bool:
    """Whether nobody listens there any more."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_it_serves_and_quits_at_once(server: EmbeddedServer) -> None:
    assert isinstance(ask(server.address, m.Status()), m.Report)
    assert server.poll() is None
    start = time.monotonic()
    server.quit()
    assert time.monotonic() - start < 2.0
    assert server.poll() == 0
    assert free(server.address)
    server.quit()
    assert server.drain()


def test_quit_does_not_wait_for_workers(server: EmbeddedServer) -> None:
    assert isinstance(ask(server.address, hello("a")), m.Welcome)
    start = time.monotonic()
    server.quit()
    assert time.monotonic() - start < 2.0


def test_drain_waits_for_the_last_worker(server: EmbeddedServer) -> None:
    line = connect(server.address)
    try:
        line.send(pack(Envelope(1, hello("a"))))
        assert line.receive(10.0) is not None
        assert not server.drain(timeout_s=0.6)
        assert server.poll() is None
        line.send(pack(Envelope(2, m.Leave())))
        assert line.receive(10.0) is not None
        assert server.drain(timeout_s=5.0)
        assert server.poll() == 0
    finally:
        line.close()


def test_drain_does_not_wait_for_a_worker_that_died(server: EmbeddedServer) -> None:
    assert isinstance(ask(server.address, hello("a")), m.Welcome)
    assert server.drain(timeout_s=10.0), "patience is 3 s, and the worker never spoke again"


def test_a_run_goes_on_in_the_next_embedded_server(tmp_path: Path) -> None:
    first = EmbeddedServer.start(RunConfig(), state_dir=tmp_path)
    line = connect(first.address)
    try:
        digest = hello("a").digest
        for i, (message, payload) in enumerate(
            [
                (hello("a"), ()),
                (m.Init(digest=digest), (bytes(8), b"")),
                (m.Push(seq=1, base=0, digest=digest), (bytes(8), b"")),
                (m.Leave(), ()),
            ]
        ):
            line.send(pack(Envelope(i + 1, message, payload)))
            assert line.receive(10.0) is not None
    finally:
        line.close()
        first.quit()
    second = EmbeddedServer.start(RunConfig(), state_dir=tmp_path)
    try:
        report = ask(second.address, m.Status())
        assert isinstance(report, m.Report)
        assert report.state["version"] == 1
    finally:
        second.quit()
    with pytest.raises(ConfigError, match="local_steps is 16 in the snapshot, 4 here"):
        EmbeddedServer.start(RunConfig(local_steps=4), state_dir=tmp_path)


def test_a_bad_configuration_is_said() -> None:
    with pytest.raises(ConfigError, match="unknown aggregator 'median_of_hopes'"):
        EmbeddedServer.start(RunConfig(aggregation="median_of_hopes"))


def test_a_taken_port_is_said(server: EmbeddedServer) -> None:
    with pytest.raises(ConfigError, match="cannot listen at"):
        EmbeddedServer.start(RunConfig(), address=server.address)


def test_a_public_address_is_refused_without_asking_for_it() -> None:
    with pytest.raises(ConfigError, match="other machines"):
        EmbeddedServer.start(RunConfig(), address="tcp://0.0.0.0:0")


def test_a_child_that_dies_at_its_start_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/ls")
    with pytest.raises(NetworkError, match=r"ended with code 2 at its start:\n.*unrecognized option"):
        EmbeddedServer.start(RunConfig())


def test_what_the_server_logs_reaches_the_owner(server: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    line = connect(server.address)
    try:
        line.send([b"", b"garbage"])
        assert within(5.0, lambda: server.poll() is None and "could not be read" in caplog.text)
    finally:
        line.close()


def owner(then: str) -> tuple[subprocess.Popen[str], str, int]:
    """A process that owns a server: (process, the server's address, the server's pid)."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(then=then)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    address, pid = process.stdout.readline().split()
    return process, address, int(pid)


def finish(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    process.stdout.close()
    return process.wait(10.0)


def test_the_server_goes_with_a_killed_owner() -> None:
    process, address, pid = owner("time.sleep(60)")
    process.kill()
    finish(process)
    assert within(DEAD_SERVER_S, lambda: not running(pid)), "an orphan"
    assert free(address)


def test_the_server_goes_with_a_killed_owner_whose_pipe_a_forked_helper_keeps() -> None:
    fork = "import os\nif os.fork() == 0:\n    time.sleep(20); os._exit(0)\nprint('forked', flush=True)\ntime.sleep(60)"
    process, address, pid = owner(fork)
    assert process.stdout is not None
    assert process.stdout.readline() == "forked\n"
    group = os.getpgid(process.pid)
    process.kill()
    finish(process)
    try:
        assert within(DEAD_SERVER_S, lambda: not running(pid)), "an orphan"
        assert free(address)
    finally:
        os.killpg(group, signal.SIGKILL)


@pytest.mark.parametrize("then", ["", "raise SystemExit(3)", "raise RuntimeError('broken')"])
def test_the_server_goes_with_an_owner_that_forgot_it(then: str) -> None:
    process, address, pid = owner(then)
    finish(process)
    assert within(DEAD_SERVER_S, lambda: not running(pid)), "an orphan"
    assert free(address)


def test_ctrl_c_reaches_the_owner_and_not_the_server() -> None:
    then = (
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print(server.poll(), server.drain(5.0), flush=True)"
    )
    process, _, _ = owner(then)
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline().split() == ["None", "True"]
    assert finish(process) == 0


def embedded(first: str) -> subprocess.Popen[str]:
    """The child itself, without its usual owner."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning_async", "serve", "--embedded"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(first + "\n")
    process.stdin.flush()
    return process


@pytest.mark.parametrize("first", ["", "no json", "[]", '{"config": {"stale": 1}}', '{"colour": 1}'])
def test_a_bad_first_line_fails_with_code_two(first: str) -> None:
    process = embedded(first)
    out, _ = process.communicate(timeout=20.0)
    assert out.startswith("FAILED ")
    assert out.count("\n") == 1
    assert process.returncode == 2


def test_sigint_is_ignored_and_sigterm_stops() -> None:
    process = embedded(json.dumps({"config": {}, "address": "tcp://127.0.0.1:0", "run": "x"}))
    assert process.stdout is not None
    word, address = process.stdout.readline().split()
    assert word == "READY"
    process.send_signal(signal.SIGINT)
    assert isinstance(ask(address, m.Status()), m.Report)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=3.0)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_closed_stdin_without_drain_ends_it_and_one_after_drain_does_not() -> None:
    process = embedded(json.dumps({"config": {}, "address": "tcp://127.0.0.1:0", "run": "x"}))
    assert process.stdout is not None
    process.stdout.readline()
    start = time.monotonic()
    process.communicate(timeout=10.0)  # closes stdin
    assert time.monotonic() - start < 2.0
    assert process.returncode == 0

    process = embedded(json.dumps({"config": {"patience_s": 3.0}, "address": "tcp://127.0.0.1:0", "run": "x"}))
    assert process.stdout is not None
    assert process.stdin is not None
    _, address = process.stdout.readline().split()
    assert isinstance(ask(address, hello("a")), m.Welcome)
    process.stdin.write("DRAIN\n")
    process.stdin.flush()
    process.stdin.close()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    assert isinstance(ask(address, m.Status()), m.Report)
    assert process.wait(10.0) == 0
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()
