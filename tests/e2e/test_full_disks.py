"""A server on a file system that is really full pauses, tells nobody of what is not kept, and goes on with new room."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from embedding import say
from eventually import ENOUGH_S, eventually
from processes import Program, address_of

from lightning_async.layout import read_manifest
from lightning_async.transport import connect
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, unpack

pytestmark = pytest.mark.slow
D = 500_000
UPDATE_BYTES, DISK = 4 * D, "32m"
TENSORS = [["w", [D], "float32", "parameter"]]
DIGEST = read_manifest(TENSORS).digest


def mounting(folder: Path, command: str) -> list[str]:
    """`command` in a namespace of its own, in which a small file system is mounted at `folder`."""
    return ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size={DISK} none {folder} && exec {command}"]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder to mount at."""
    folder = tmp_path / "disk"
    folder.mkdir()
    may = sys.platform == "linux" and shutil.which("unshare") is not None
    if not may or subprocess.run(mounting(folder, "true"), capture_output=True, check=False).returncode:
        pytest.skip("mounts a file system in a namespace, which this system does not allow")
    return folder


def fill(folder: Path, left_bytes: int) -> Path:
    """A file that leaves so much room."""
    ballast, found = folder / "ballast", os.statvfs(folder)
    ballast.write_bytes(bytes(found.f_bavail * found.f_frsize - left_bytes))
    return ballast


def test_a_full_file_system_pauses_the_run_and_loses_nothing(disk: Path, tmp_path: Path) -> None:
    serve = f"{sys.executable} -m lightning_async serve --address=tcp://127.0.0.1:0 --state-dir={disk}/state"
    options = " --compression=none --download-compression=none --snapshot-every-s=36000"
    with Program(mounting(disk, serve + options), tmp_path / "server") as server:
        line = connect(address_of(server))
        seen = Path(f"/proc/{server.pid}/root{disk}")  # the disk as the server sees it
        hello = m.Hello(worker="w", instance="1", tensors=TENSORS, digest=DIGEST)
        update = (bytes(UPDATE_BYTES), b"")
        push: Callable[[int], m.Push] = lambda seq: m.Push(seq=seq, base=0, digest=DIGEST)  # noqa: E731
        try:
            assert isinstance(say(line, 1, hello), m.Welcome)
            assert isinstance(say(line, 2, m.Init(digest=DIGEST), (bytes(UPDATE_BYTES), b"")), m.Ack)
            ballast = fill(seen, UPDATE_BYTES * 3 // 2)
            assert say(line, 3, push(1), update) == m.Receipt(seq=1, accepted=True, version=0)
            line.send(pack(Envelope(4, push(2), update)))
            server.wait_for("The run is paused: nothing is acknowledged")
            assert line.receive(0.0) is None, "nobody is told of what is not kept"
            ballast.unlink()
            frames = line.receive(ENOUGH_S)
            assert frames is not None
            assert unpack(frames).message == m.Receipt(seq=2, accepted=True, version=1, staleness=1)
            assert "the journal can be written again" in server.output
            report = say(line, 5, m.Status())
            assert isinstance(report, m.Report)
            assert report.state["version"] == 2
            copy = tmp_path / "copy"
            os.kill(server.pid, signal.SIGSTOP)
            shutil.copytree(seen / "state", copy, ignore=shutil.ignore_patterns("*-shm"))
            os.kill(server.pid, signal.SIGKILL)
            eventually(lambda: server.process.poll() is not None)
        finally:
            line.close()
    check = [sys.executable, "-m", "lightning_async", "status", "--state", str(copy)]
    with Program(check, tmp_path / "status") as status:
        assert status.wait() == 0, status.output
        assert "v2" in status.output or "version 2" in status.output, status.output
