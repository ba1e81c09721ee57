"""The fixtures of conftest.py themselves: what a test leaves behind makes it fail, and the next one starts clean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LEAKY = """
import os, socket, subprocess, sys, threading
import zmq
kept = []
def test_socket(): kept.append(socket.socket())
def test_thread():
    kept.append(threading.Event())
    threading.Thread(target=kept[-1].wait, args=(20,), daemon=True).start()
def test_child(): kept.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"]))
def test_environment(): os.environ["LEFT_HERE"] = "1"
def test_context(): kept.append(zmq.Context()); kept.append(kept[-1].socket(zmq.PAIR))
def test_clean():
    assert "LEFT_HERE" not in os.environ
    with socket.socket(): pass
def test_end():
    for process in kept:
        if isinstance(process, subprocess.Popen): process.kill(); process.wait()
"""


def test_a_test_that_leaves_something_behind_fails(tmp_path):
    rules = (Path(__file__).parent / "conftest.py").read_text()
    (tmp_path / "conftest.py").write_text(rules.replace("GRACE_S = 3.0", "GRACE_S = 0.1"))
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    command = [sys.executable, "-m", "pytest", "-q", "-rE", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "."]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    summary = [line for line in run.stdout.splitlines() if line.startswith("ERROR")]
    leaky = ["socket", "thread", "child", "environment", "context"]
    assert [line.split("::")[1].split(" ")[0] for line in summary] == [f"test_{name}" for name in leaky], run.stdout
    for name in ("socket:[", "thread Thread-", "child process", "LEFT_HERE", "ZeroMQ thread"):
        assert name in run.stdout
    assert "7 passed, 5 errors" in run.stdout
