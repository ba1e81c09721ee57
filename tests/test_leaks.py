"""The fixtures of conftest.py themselves: what a test leaves behind makes it fail, and the next one starts clean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LEAKY = """
import os, socket, subprocess, sys, threading
import zmq
kept = []
def test_socket(): kept.append(socket.socket())
def test_thread():
    kept.append(threading.Event())
    threading.Thread(target=kept[-1].wait, args=(600,), daemon=True).start()
def test_child(): kept.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
def test_environment(): os.environ["LEFT_HERE"] = "1"
def test_context(): kept.append(zmq.Context()); kept.append(kept[-1].socket(zmq.PAIR))
def test_clean():
    assert "LEFT_HERE" not in os.environ
    with socket.socket(): pass
def test_end():
    for process in kept:
        if isinstance(process, subprocess.Popen): process.kill(); process.wait()
"""
FAILING = """
import gc, pathlib, sys
import pytest
SLEEP = "import time; time.sleep(600)"
CHILD = "import subprocess, sys, time; helper = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); "
CHILD += "print(helper.pid, flush=True); time.sleep(600)"
said = []
@pytest.mark.xfail(strict=True, raises=AssertionError)
def test_that_fails(children):
    said.append(children.start([sys.executable, "-c", CHILD, SLEEP]).stdout.readline().strip())
    assert not said
def test_after_it():
    gc.collect()
    helper = pathlib.Path("/proc", said[0], "stat")
    while helper.exists() and helper.read_text().rpartition(")")[2].split()[0] != "Z": pass
"""


def pytest_of(folder: Path, tests: str) -> str:
    """What pytest says to `tests` under our fixtures."""
    rules = (HERE / "conftest.py").read_text()
    assert "GRACE_S = 30.0" in rules
    (folder / "conftest.py").write_text(rules.replace("GRACE_S = 30.0", "GRACE_S = 0.1"))
    for beside in ("children.py", "eventually.py"):
        (folder / beside).write_text((HERE / beside).read_text())
    (folder / "test_made.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-rE", "-W", "error", "-p", "no:cacheprovider", "--rootdir", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    return done.stdout + done.stderr


def test_a_test_that_leaves_something_behind_fails(tmp_path):
    said = pytest_of(tmp_path, LEAKY)
    summary = [line for line in said.splitlines() if line.startswith("ERROR")]
    leaky = ["socket", "thread", "child", "environment", "context"]
    assert [line.split("::")[1].split(" ")[0] for line in summary] == [f"test_{name}" for name in leaky], said
    for name in ("socket:[", "thread Thread-", "child process", "LEFT_HERE", "ZeroMQ thread"):
        assert name in said
    assert "7 passed, 5 errors" in said


def test_a_failing_test_takes_its_processes_and_their_children_with_it(tmp_path):
    """Else the next test fails by a warning about a process that it has never seen."""
    said = pytest_of(tmp_path, FAILING)
    assert "1 passed, 1 xfailed" in said, said
