"""`lightning-async doctor`: everything that it can say is wrong, each made wrong for real on loopback."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from answering import answering, deaf, talking
from certificates import certificate
from children import Children
from eventually import ENOUGH_S
from keyring import Keyring
from ports import nobody

from lightning_async import AsyncOptimizer
from lightning_async.cli import main as cli
from lightning_async.cli.trouble import CURES
from lightning_async.config import RunConfig
from lightning_async.server import ServerThread
from lightning_async.server.rules import canonical
from lightning_async.transport import invitations, listen
from lightning_async.transport.allowed import Caller
from lightning_async.transport.keys import VARIABLE
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, Frame, pack, sealed, unpack

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="how it is provoked is Linux's")


class Doctor:
    """`lightning-async doctor` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def says(self, address: str, *words: object, timeout: float = ENOUGH_S) -> dict[str, Any]:
        """What it found, as --json says it; its exit status is right."""
        self._capsys.readouterr()
        chosen = ["doctor", address, "--json", "--seconds=0.2", f"--timeout={timeout}"]
        code = cli.main([*chosen, *map(str, words)])
        found: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        assert code == (0 if found["well"] else 1)
        assert found["well"] is not bool(found["troubles"])
        assert all(trouble["do"] == CURES[trouble["code"]] for trouble in found["troubles"])
        return found

    def finds(self, code: str, address: str, *words: object, timeout: float = ENOUGH_S) -> str:
        """What is told of the only trouble there, which is `code`."""
        (trouble,) = self.says(address, *words, timeout=timeout)["troubles"]
        assert trouble["code"] == code, trouble
        return str(trouble["what"])


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Doctor:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(VARIABLE, raising=False)
    return Doctor(capsys)


@pytest.fixture
def server() -> Iterator[ServerThread]:
    with ServerThread(RunConfig()) as one:
        yield one


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "server")


def model(width: int = 8) -> torch.nn.Module:
    return torch.nn.Linear(width, width)


@contextlib.contextmanager
def training(server: ServerThread, width: int = 8, steps: int = 16) -> Iterator[None]:
    """A worker that has trained there, a round if there are so many steps."""
    module = model(width)
    sgd = torch.optim.SGD(module.parameters(), lr=0.1)
    with AsyncOptimizer(sgd, module, server.address) as optimizer:
        for _ in range(steps):
            optimizer.zero_grad()
            module(torch.ones(1, width)).sum().backward()
            optimizer.step()
        optimizer.engine.flush()
        yield


def test_every_trouble_is_provoked_here_and_stands_in_the_docs() -> None:
    provoked = set(re.findall(r'(?:finds\(|code == )"(\w+)"', Path(__file__).read_text()))
    assert provoked == set(CURES)
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \| .* \|$", page.partition("## doctor")[2], re.MULTILINE)) == set(CURES)


def test_all_is_well(doctor: Doctor, server: ServerThread, capsys: pytest.CaptureFixture[str]) -> None:
    with training(server):
        before = server.coordinator.run.version, len(list(server.coordinator.run.members))
        found = doctor.says(server.address, "--step-s=0.01")
        assert cli.main(["doctor", server.address, "--seconds=0.2", f"--timeout={ENOUGH_S}"]) == 0
        assert (server.coordinator.run.version, len(list(server.coordinator.run.members))) == before
        assert server.coordinator.run.refused_strangers == 0
    assert "all is well" in capsys.readouterr().out
    line = found["line"]
    assert 0 < line["rtt_least_s"] <= line["rtt_s"] <= line["rtt_most_s"]
    assert min(line["up_bytes_per_s"], line["down_bytes_per_s"]) > 0
    assert abs(line["offset_s"]) <= line["offset_error_s"] + 0.001
    assert {"python", "torch", "lightning_async", "free_bytes"} <= line["host"].keys() & found["here"].keys()
    assert found["round"]["upload_bytes"] == found["round"]["download_bytes"] == 4 * 72
    assert found["round"]["local_steps"] == 16


def test_a_round_on_a_thin_line_is_told_with_a_better_plan(doctor: Doctor, server: ServerThread) -> None:
    from lightning_async.cli.costing import cost, line_of
    from lightning_async.server import report

    with training(server):
        run = server.coordinator.run
        state = report.state(run, run.now) | {"parameters": 1_000_000}
        thin = line_of(0.05, 125_000.0, 125_000.0)
        told = cost(state, thin, 0.1)
        assert told is not None
        assert told.seconds == pytest.approx(32.0 + 32.0 + 0.05, rel=0.01)
        assert told.hidden == pytest.approx(16 * 0.1 / told.seconds, rel=0.01)
        assert told.advice is not None
        assert told.advice.utilisation[0] > told.utilisation
        assert told.advice.compression != "none"
        wide = cost(state, line_of(0.001, 1e10, 1e10), 0.1)
        assert wide is not None
        assert wide.hidden == 1.0
        assert wide.advice is None
        unknown = cost(report.state(run, run.now) | {"workers": {}}, thin, None)
        assert unknown is not None
        assert (unknown.hidden, unknown.hiding_step_s) == (None, pytest.approx(unknown.seconds / 16))


def test_a_name_that_nobody_knows(doctor: Doctor) -> None:
    assert "no-such-host.invalid" in doctor.finds("host_unknown", "tcp://no-such-host.invalid:5555")


def test_a_port_where_nobody_listens(doctor: Doctor) -> None:
    with nobody() as address:
        doctor.finds("port_closed", address)
        doctor.finds("port_closed", address.replace("tcp", "http"))


@LINUX
def test_a_host_that_drops_everything(doctor: Doctor) -> None:
    with deaf() as address:
        doctor.finds("no_route", address, timeout=0.5)


def test_somebody_else_at_the_port(doctor: Doctor, server: ServerThread) -> None:
    with talking(answer=b"HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\nhello") as address:
        assert "HTTP server" in doctor.finds("not_ours", address, timeout=0.5)
    with talking(banner=b"SSH-2.0-OpenSSH_9.6\r\n") as address:
        assert "SSH-2.0" in doctor.finds("not_ours", address)
    with talking() as address:
        assert "said nothing" in doctor.finds("not_ours", address, timeout=0.5)
    with answering(lambda frames: [b"", b"hello yourself"]) as address:
        assert "no message" in doctor.finds("not_ours", address)
    assert "ZeroMQ" in doctor.finds("not_ours", server.address.replace("tcp", "http"))


def test_a_server_of_ours_over_http(doctor: Doctor) -> None:
    with ServerThread(RunConfig(), "http://127.0.0.1:0") as http:
        doctor.finds("http_there", http.address.replace("http", "tcp"), timeout=2.0)
        assert doctor.says(http.address)["well"]


def test_http_with_a_token(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(listen("http://127.0.0.1:0", token="secret")) as door:
        assert "401" in doctor.finds("http_token", door.address)
        monkeypatch.setenv("LIGHTNING_ASYNC_HTTP_TOKEN", "secret")
        assert doctor.finds("no_answer", door.address, timeout=3.0), "nobody serves behind this door"


def test_a_certificate_that_nobody_trusts(doctor: Doctor) -> None:
    with contextlib.closing(listen("https://127.0.0.1:0", certificate=certificate(), public=True)) as door:
        assert "verify failed" in doctor.finds("certificate", door.address, timeout=5.0)


def test_a_key_file_that_cannot_be_used(doctor: Doctor, server: ServerThread, ring: Keyring, tmp_path: Path) -> None:
    file = ring.file(ring.key("alice"), tmp_path / "alice.key")
    file.chmod(0o644)
    assert "644" in doctor.finds("key_file", server.address, "--key", file)


def test_keys_on_one_side_only(doctor: Doctor, server: ServerThread, ring: Keyring, tmp_path: Path) -> None:
    file = ring.file(ring.key("alice"), tmp_path / "alice.key")
    doctor.finds("no_keys_there", server.address, "--key", file)
    with ServerThread(RunConfig(), keys=ring.folder) as keyed:
        doctor.finds("needs_key", keyed.address)
        assert doctor.says(keyed.address, "--key", file)["speaks"] == "encrypted, as worker 'alice'"


def test_a_key_that_is_not_taken(doctor: Doctor, ring: Keyring, tmp_path: Path) -> None:
    strange = ring.file(ring.stranger(), tmp_path / "strange.key")
    alice = ring.file(ring.key("alice"), tmp_path / "alice.key")
    observer = ring.file(ring.key("bob", "observer"), tmp_path / "bob.key")
    with ServerThread(RunConfig(), keys=ring.folder) as keyed:
        assert "was revoked" in doctor.finds("key_refused", keyed.address, "--key", strange)
        assert doctor.says(keyed.address, "--key", alice)["well"]
        assert doctor.says(keyed.address, "--key", observer)["well"]
        ring.revoke("alice")
        assert "was revoked" in doctor.finds("key_refused", keyed.address, "--key", alice)
        invitations.invite(ring.folder, Caller("new", "worker"), 1000.0, time.time())
        assert "join with an invitation" in doctor.finds("key_refused", keyed.address, "--key", strange)


def test_a_server_with_other_keys(doctor: Doctor, ring: Keyring, tmp_path: Path) -> None:
    other = Keyring(tmp_path / "other")
    alice = ring.file(other.key("alice"), tmp_path / "alice.key")
    with ServerThread(RunConfig(), keys=ring.folder) as keyed:
        assert "another key" in doctor.finds("wrong_server_key", keyed.address, "--key", alice)


def refused(version: int) -> Sequence[Frame]:
    body = msgpack.packb({"t": "Refused", "i": 1, "c": [], "reason": "protocol_version", "detail": "other"})
    return [b"", sealed(body, version)]


def test_other_versions_of_the_protocol(doctor: Doctor) -> None:
    with answering(lambda frames: refused(2)) as address:
        assert "version 2" in doctor.finds("server_newer", address)
    with answering(lambda frames: refused(0)) as address:
        assert "version 0" in doctor.finds("server_older", address)


STATE = {"run": "r", "version": 3, "parameters": 5, "live": 0, "ended": "", "workers": {}, "config": {}}


def reporting(state: dict[str, Any]) -> Callable[[Sequence[memoryview]], Sequence[Frame]]:
    """A server that reports this, and answers Probes."""

    def answer(frames: Sequence[memoryview]) -> Sequence[Frame]:
        envelope = unpack(frames)
        if isinstance(envelope.message, m.Status):
            return pack(Envelope(envelope.id, m.Report(state=state)))
        assert isinstance(envelope.message, m.Probe)
        echo = m.Echo(received_at=time.time(), answered_at=time.time())
        size = envelope.message.down_bytes
        return pack(Envelope(envelope.id, echo, (bytes(size),) if size else ()))

    return answer


def before_probes(frames: Sequence[memoryview]) -> Sequence[Frame]:
    """A server of this protocol that knows no Probe."""
    envelope = unpack(frames)
    if isinstance(envelope.message, m.Status):
        return pack(Envelope(envelope.id, m.Report(state=STATE)))
    return pack(Envelope(envelope.id, m.Refused(reason="protocol", detail="unknown message 'Probe'")))


def test_a_server_from_before_probes(doctor: Doctor) -> None:
    with answering(before_probes) as address:
        assert "Probe" in doctor.finds("server_older", address)


def test_reports_of_strange_servers(doctor: Doctor) -> None:
    with answering(reporting({"run": "r"})) as address:
        assert "lacks version, parameters" in doctor.finds("server_older", address)
    with answering(reporting(STATE | {"parameters": "many", "workers": [1]})) as address:
        assert "lacks parameters, workers" in doctor.finds("server_older", address)
    config = canonical(RunConfig()).as_dict()
    for wrong in (
        {"config": {}},
        {"config": config | {"compression": "of_tomorrow"}},
        {"config": config | {"fragments": [3]}},
        {"config": config | {"fragments": 0}},
        {"config": config, "parameters": -(2**62)},
        {"config": config, "workers": {"a": 5}},
    ):
        with answering(reporting(STATE | wrong)) as address:
            assert "cannot be read" in doctor.finds("server_newer", address), wrong
    with answering(reporting(STATE | {"config": config})) as address:
        assert doctor.says(address)["well"]


@pytest.mark.slow
def test_a_server_that_does_not_answer(doctor: Doctor) -> None:
    with answering(lambda frames: None) as address:
        doctor.finds("no_answer", address, timeout=6.0)
    with answering(lambda frames: before_probes(frames) if len(frames[1]) < 40 else None) as address:
        assert "while the line was measured" in doctor.finds("line_lost", address, timeout=6.0)


def test_another_model(doctor: Doctor, server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert doctor.says(server.address, "--model=test_doctor:model")["well"], "the run has no model yet"
    with training(server, width=9):
        assert "(9, 9)" in doctor.finds("layout", server.address, "--model=test_doctor:model")
    assert cli.main(["doctor", server.address, "--model=test_doctor:nothing"]) == 2
    assert cli.main(["doctor", server.address, "--model=test_doctor:LINUX"]) == 2


@LINUX
def test_too_little_memory(doctor: Doctor, server: ServerThread) -> None:
    import resource

    with training(server, width=5000, steps=0):
        before = resource.getrlimit(resource.RLIMIT_AS)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 400 * 2**20, before[1]))
        try:
            told = doctor.finds("memory", server.address)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    assert "477 MiB at least" in told


LATE = """
import sys, time
now = time.time
time.time = lambda: now() - 3600.0
from lightning_async.cli.main import main
sys.exit(main(["serve", "--address", "tcp://127.0.0.1:0"]))
"""


def test_a_clock_that_is_far_off(doctor: Doctor, children: Children) -> None:
    serving = children.start([sys.executable, "-c", LATE])
    assert serving.stdout is not None
    address = re.search(r"tcp://[0-9.:]+", serving.stdout.readline())
    assert address is not None
    assert "ahead of" in doctor.finds("clock", address[0])


def test_a_run_that_is_over(doctor: Doctor) -> None:
    with ServerThread(RunConfig(total_steps=16)) as server, training(server):
        assert "16 of 16" in doctor.finds("ended", server.address)


@pytest.mark.parametrize(
    "words", [["udp://h:1"], ["tcp://*:5"], ["tcp://h:0"], ["tcp://h"], ["tcp://h:1", "--step-s=0"]]
)
def test_what_cannot_be_asked(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", *words]) == 2
    assert "got" in capsys.readouterr().err
