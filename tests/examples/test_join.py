"""A second terminal joins a training with the command that the first one prints."""

from __future__ import annotations

import json
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 300.0


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder with enough text for a vocabulary of 2048 tokens."""
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(200):  # two percent of them are held out
        lines = [f"value_{i}_{j} = {i * j} + len('{chr(97 + j % 26) * (j % 7)}')" for j in range(60)]
        (folder / f"m{i}.py").write_text("\n".join(lines))
    return folder


class Terminal:
    """A process with its output as lines; killed with its children when it is left."""

    def __init__(self, command: list[str]) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LIGHTNING_ASYNC_")}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._queue.put(line)
        self._queue.put(None)

    def line_after(self, words: str) -> str:
        """The line that follows the one with `words`."""
        deadline, found = time.monotonic() + LIMIT_S, False
        while (line := self._queue.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
            self.lines.append(line)
            if found:
                return line.strip()
            found = words in line
        pytest.fail(f"no line with {words!r} in:\n{''.join(self.lines)}")

    def wait(self) -> int:
        """The exit code; every line is in `lines` then."""
        code = self._process.wait(timeout=LIMIT_S)
        while (line := self._queue.get(timeout=LIMIT_S)) is not None:
            self.lines.append(line)
        return code

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._reader.join()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.mark.slow
def test_second_terminal_joins_with_the_printed_command(text: Path, tmp_path: Path) -> None:
    options = ["--text", text, "--data-dir", tmp_path / "cache", "--batch-size", 2, "--val-every", 1000]
    first = [sys.executable, "-m", "examples.gpt2.train", "--local-steps", 4, "--total-steps", 300, *options]
    first += ["--speeds", 1.0, "--unit", 0.1]  # slow enough for the second one to arrive in time
    with Terminal([*map(str, first), "--out", str(tmp_path / "first")]) as one:
        invitation = one.line_after("join from a second terminal")
        with Terminal([*shlex.split(invitation), "--out", str(tmp_path / "second")]) as two:
            assert two.wait() == 0, "".join(two.lines)
        assert one.wait() == 0, "".join(one.lines)
    outcomes = [json.loads((tmp_path / name / "outcome.json").read_text()) for name in ("first", "second")]
    workers = outcomes[0]["report"]["workers"].values()
    assert sum(worker["steps"] for worker in workers) >= 300
    assert [worker["accepted"] > 0 for worker in workers] == [True, True]
    assert outcomes[1]["steps"] > 0
    assert outcomes[0]["after"] == pytest.approx(outcomes[1]["after"], rel=1e-3)  # both hold what was published last
