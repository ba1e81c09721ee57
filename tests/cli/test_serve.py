"""`serve` and `status`: files and flags, and real processes."""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import Children
from eventually import ENOUGH_S
from ports import nobody

from lightning_async.cli import main as cli
from lightning_async.cli.place import Place
from lightning_async.cli.serve import configured, join_line, read_file
from lightning_async.cli.status import ask
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError, UnreachableError
from lightning_async.layout import read_manifest
from lightning_async.transport import connect
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, unpack

JOIN = re.compile(
    r'join: AsyncWANStrategy\("(tcp://[^"]+)"\)  # or: LIGHTNING_ASYNC_SERVER=(\S+) python your_script.py'
)


# Whoever waits for workers in the end waits for an hour.
SERVE = (
    "from lightning_async.server import service; service.GOODBYE_S = 3600.0\n"
    "import sys; from lightning_async.cli.main import main; sys.exit(main(['serve', *sys.argv[1:]]))"
)
Serve = Callable[..., tuple["subprocess.Popen[str]", str]]


def started(children: Children, *words: str) -> tuple[subprocess.Popen[str], str]:
    """A server in a process of its own, and its address from the line that it printed."""
    command = [sys.executable, "-c", SERVE, "--address", "tcp://127.0.0.1:0", *words]
    process = children.start(command, stderr=subprocess.PIPE)
    assert process.stdout is not None
    found = JOIN.fullmatch(process.stdout.readline().strip())
    if found is None:
        raise AssertionError(process.communicate(timeout=ENOUGH_S))
    assert found[1] == found[2]
    return process, found[1]


@pytest.fixture
def serve(children: Children) -> Serve:
    return lambda *words: started(children, *words)


def end(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    """(exit code, log) after a signal."""
    process.send_signal(number)
    _, log = process.communicate(timeout=ENOUGH_S)
    return process.returncode, log


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("serve") / "run.yaml"
    file.write_text("local_steps: 4\nquorum: all\nrun: from the file\naddress: tcp://0.0.0.0:1\nseed: 3\n")
    children = Children()
    try:
        yield started(children, "--config", str(file), "--seed", "7")[1]
    finally:
        children.end()


def test_a_file_is_read_and_flags_override_it(served: str) -> None:
    state = ask(served, ENOUGH_S)
    assert state["run"] == "from the file"
    assert (state["config"]["local_steps"], state["config"]["quorum"], state["config"]["seed"]) == (4, "all", 7)


def test_status_prints_a_page_or_json(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", served]) == 0
    assert "no worker has joined yet" in capsys.readouterr().out
    assert cli.main(["status", served, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == -1


def test_status_leaves_no_trace_in_the_run(served: str) -> None:
    for _ in range(3):
        state = ask(served, ENOUGH_S)
    assert state["workers"] == {}


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with nobody() as address:
        with pytest.raises(UnreachableError, match=r"within 1 s. Check"):
            ask(address, 0.6)
        assert cli.main(["status", address, "--timeout", "0.3"]) == 1
    assert f"no server answered at {address}" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it(serve: Serve, number: int, code: int) -> None:
    process, _ = serve()
    got, log = end(process, number)
    assert got == code
    assert f"{signal.Signals(number).name}: telling the workers" in log
    assert "Traceback" not in log
    assert "<Server v-1 | workers 0/0" in log


def test_workers_are_told_and_a_second_signal_does_not_wait_for_them(serve: Serve) -> None:
    process, address = serve()
    line = connect(address)
    try:
        tensors = [["w", [2], "float32", "parameter"]]
        digest = read_manifest(tensors).digest
        line.send(pack(Envelope(1, m.Hello(worker="a", instance="1", tensors=tensors, digest=digest))))
        assert line.receive(ENOUGH_S) is not None
        process.send_signal(signal.SIGINT)
        told = False
        while not told:  # the server needs a moment to see the signal; pytest ends an endless wait
            line.send(pack(Envelope(2, m.Beat())))
            frames = line.receive(ENOUGH_S)
            assert frames is not None
            answer = unpack(frames).message
            assert isinstance(answer, m.Ack)
            told = answer.stop
        assert process.poll() is None, "it waits for its worker"
        assert end(process, signal.SIGINT)[0] == 130
    finally:
        line.close()


def test_events_are_written(serve: Serve, tmp_path: Path) -> None:
    process, address = serve("--events", str(tmp_path / "deep" / "events.jsonl"))
    line = connect(address)
    try:
        line.send(pack(Envelope(1, m.Hello(worker="watcher", instance="1", role="observer"))))
        assert line.receive(ENOUGH_S) is not None
    finally:
        line.close()
    end(process, signal.SIGTERM)
    events = [json.loads(text) for text in (tmp_path / "deep" / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["Joined", "Ended"]


def train(address: str, base: int, begin: bool) -> m.Message:
    """Join as worker a, push once; the receipt."""
    line = connect(address)
    tensors = [["w", [2], "float32", "parameter"]]
    digest = read_manifest(tensors).digest
    told: list[m.Message] = []

    def ask(message: m.Request, *payload: bytes) -> None:
        line.send(pack(Envelope(len(told) + 1, message, payload)))
        frames = line.receive(ENOUGH_S)
        assert frames is not None
        told.append(unpack(frames).message)

    try:
        ask(m.Hello(worker="a", instance="1", tensors=tensors, digest=digest))
        if begin:
            ask(m.Init(digest=digest), bytes(8), b"")
        ask(m.Push(seq=base + 1, base=base, digest=digest), bytes(8), b"")
        receipt = told[-1]
        ask(m.Leave())
        return receipt
    finally:
        line.close()


def test_a_run_goes_on_from_its_state_dir(serve: Serve, tmp_path: Path) -> None:
    folder = str(tmp_path / "state")
    process, address = serve("--state-dir", folder, "--run", "long one")
    assert train(address, 0, begin=True) == m.Receipt(seq=1, accepted=True, version=0)
    code, log = end(process, signal.SIGTERM)
    assert code == 143, log

    process, address = serve("--state-dir", folder)
    state = ask(address, ENOUGH_S)
    assert (state["run"], state["version"], state["workers"]["a"]["accepted"]) == ("long one", 1, 1)
    assert train(address, 1, begin=False) == m.Receipt(seq=2, accepted=True, version=1)
    process.kill()
    _, log = process.communicate(timeout=ENOUGH_S)
    assert "going on with run 'long one' at version 1" in log

    process, address = serve("--state-dir", folder)
    assert ask(address, ENOUGH_S)["version"] == 2, "killed without a word, and nothing that was acknowledged is lost"
    assert train(address, 1, begin=False) == m.Receipt(seq=2, accepted=True, version=1), "the first receipt again"
    end(process, signal.SIGTERM)

    done = subprocess.run(
        [sys.executable, "-m", "lightning_async", "serve", "--state-dir", folder, "--local-steps", "8"],
        capture_output=True,
        text=True,
        timeout=ENOUGH_S,
    )
    assert done.returncode == 2
    assert "local_steps is 16 in the snapshot, 8 here" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--state-dir", "/proc/none"), "cannot keep a run in /proc/none"),
        (("--state-dir", "/proc/none", "--snapshot-every-s", "0"), "snapshot_every_s: got 0.0"),
        (("--local-steps", "0"), "local_steps: got 0"),
        (("--mode", "sync", "--staleness", "adaptive"), "means staleness='fixed(bound=0)'"),
        (("--aggregation", "trimmed_mean(f=2)", "--quorum", "4"), "can never satisfy"),
        (("--outer", "adamw"), "unknown outer optimizer 'adamw'"),
        (("--address", "tcp://0.0.0.0:0"), "other machines"),
        (("--address", "here"), "expected one that begins with"),
        (("--config", "/nowhere/run.yaml"), "cannot read /nowhere/run.yaml"),
        (("--events", "/proc/none/x"), "cannot write to"),
        (("--metrics", "/proc/none/x"), "cannot write to"),
    ],
)
def test_what_cannot_be_served_is_said_with_code_two(
    words: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("lightning_async.cli.hosting.Hosted.serve", lambda *_: pytest.fail("it serves"))
    assert cli.main(["serve", "--address", "tcp://127.0.0.1:0", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stale: 1", "unknown configuration stale"),
        ("[1, 2]", "must be a mapping"),
        ("a: [", "is not YAML"),
        ("local_steps: 4.5", "local_steps: got 4.5"),
        ("events: 3", "events: got 3"),
        ("public: maybe", "public: got 'maybe'"),
        ("compression: 7", "compression: got 7"),
    ],
)
def test_a_bad_file_is_said(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        configured(read_file(file), {})


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("")
    assert configured(read_file(file), {}) == (RunConfig(), Place())


def test_the_join_line_is_one_line_that_can_be_copied() -> None:
    assert JOIN.fullmatch(join_line("tcp://127.0.0.1:5555"))


def options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of a command, and of the commands in it."""
    for action in parser._actions:
        yield action
        for inner in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            yield from options(inner)


def test_help_documents_every_option() -> None:
    found = [action for action in options(cli.parser()) if not isinstance(action, argparse._SubParsersAction)]
    assert len(found) > 100
    assert [action.dest for action in found if not action.help or len(action.help) < 10] == []


def test_server_and_command_line_import_no_lightning_and_help_no_torch() -> None:
    code = (
        "import sys, lightning_async.cli.main as cli; cli.parser(); assert 'torch' not in sys.modules, 'torch';"
        "import lightning_async.cli.hosting, lightning_async.cli.embedded, lightning_async.server;"
        "roots = {name.split('.')[0] for name in sys.modules};"
        "print(sorted(roots & {'lightning', 'pytorch_lightning', 'torchmetrics'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=ENOUGH_S)
    assert done.stdout.strip() == "[]"
