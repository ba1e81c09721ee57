"""Programs for tests: started in a folder of their own, watched through what they print, and never left behind.

Every process that a program starts, and every process that those start, carries a mark in its environment, so
`alive` finds them all, whatever session, group or parent they have by now. Rule of this file: every wait polls and
has an upper bound that only a hung program reaches. A test that has to do something while a program trains lets it
wait at a gate (`scripts/train.py`, `scripts/plain.py`), and opens it afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eventually import eventually

SCRIPTS = Path(__file__).parent / "scripts"
GATE = "go"
MARK = "LIGHTNING_ASYNC_TEST"
FOREIGN = ("LIGHTNING_ASYNC_", "SLURM_", "MASTER_", "TORCHELASTIC_", "PL_")
JOIN = {"LIGHTNING_ASYNC_PATIENCE_S": "240"}  # by default a server has a minute to come up
ALSO = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE")
START_S = 180.0  # importing Lightning in four processes takes ten seconds on two cores that are free
END_S = 240.0  # training to the end, where it takes seconds
GONE_S = 90.0  # from the end of a run until its processes are gone: Python takes thousands of modules down


class Program:
    """A running command with everything that it has started. `with` ends it all, whatever happened."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"output-{self.mark[:6]}.txt"
        with self._log.open("ab") as sink:
            self.process = subprocess.Popen(
                list(command),
                cwd=folder,
                env=_environment(self.mark, environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        while pids := self.alive():
            for pid in pids:
                _kill(pid, signal.SIGKILL)
            self.process.poll()
        self.process.wait()
        if error is not None:
            print(f"--- output of {self.process.args}\n{self.output[-6000:]}")

    @property
    def output(self) -> str:
        """Everything that it and its children have printed so far."""
        return self._log.read_text(errors="replace")

    def alive(self) -> list[int]:
        """The processes that are still there, zombies not counted."""
        self.process.poll()
        return [pid for pid in _processes() if self._is_ours(pid)]

    def events(self, name: str, rank: int | None = None) -> list[dict[str, Any]]:
        """What scripts/train.py has announced: lines that begin with an @."""
        found = [json.loads(line[1:]) for line in self._lines() if line.startswith("@{")]
        return [event for event in found if event["event"] == name and rank in (None, event["rank"])]

    def wait_for(self, text: str, timeout_s: float = START_S) -> str:
        """The first line of the output that contains `text`."""

        def found() -> str:
            ended = self.process.poll() is not None
            line = next((line for line in self._lines() if text in line), "")
            assert line or not ended, f"ended without {text!r}:\n{self.output[-4000:]}"
            return line

        return str(eventually(found, timeout_s, f"{text!r} in\n{self.output[-4000:]}"))

    def wait_for_step(self, rank: int, step: int, timeout_s: float = START_S) -> dict[str, Any]:
        """The announcement of that step of that rank."""

        def found() -> list[dict[str, Any]]:
            ended = self.process.poll() is not None
            events = [event for event in self.events("step", rank) if event["step"] >= step]
            assert events or not ended, f"ended before step {step} of {rank}:\n{self.output[-4000:]}"
            return events

        return dict(eventually(found, timeout_s, f"step {step} of rank {rank}")[0])

    def wait_for_gate(self, rank: int = 0) -> None:
        """Until that rank stands at its gate."""

        def there() -> bool:
            ended = self.process.poll() is not None
            assert self.events("gate", rank) or not ended, f"ended before the gate:\n{self.output[-4000:]}"
            return bool(self.events("gate", rank))

        eventually(there, START_S, f"rank {rank} at its gate")

    def open_gate(self) -> None:
        """Let the ranks that wait at their gate go on."""
        (self.folder / GATE).touch()

    def wait(self, timeout_s: float = END_S) -> int:
        """Its exit code."""
        eventually(lambda: self.process.poll() is not None, timeout_s, f"the end of\n{self.output[-4000:]}")
        return int(self.process.returncode)

    def wait_until_gone(self, timeout_s: float = GONE_S) -> None:
        """Until none of its processes is left."""
        eventually(lambda: not self.alive(), timeout_s, f"left behind: {[_command(p) for p in self.alive()]}")

    def server_pid(self) -> int:
        """The embedded server's process."""
        return int(eventually(lambda: next((p for p in self.alive() if "--embedded" in _command(p)), 0), START_S))

    def rank_pid(self, rank: int) -> int:
        """The process of a rank, as it has announced it."""
        return int(eventually(lambda: self.events("begin", rank), START_S, f"the begin of rank {rank}")[0]["pid"])

    def interrupt(self) -> None:
        """What Ctrl+C does in a terminal: SIGINT to the whole process group."""
        os.killpg(self.pid, signal.SIGINT)

    def _lines(self) -> list[str]:
        """The lines of the output that are whole by now."""
        return [line.rstrip("\n") for line in self.output.splitlines(keepends=True) if line.endswith("\n")]

    def _is_ours(self, pid: int) -> bool:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
            return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False


def script(name: str, options: Mapping[str, Any] | None = None) -> list[str]:
    """The command for scripts/<name>.py with `options` as its one argument."""
    return [sys.executable, str(SCRIPTS / f"{name}.py"), json.dumps(options or {})]


def serve(folder: Path, address: str = "tcp://127.0.0.1:0", **options: Any) -> Program:
    """A server of its own; `address_of` says where it listens."""
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    return Program([sys.executable, "-m", "lightning_async", "serve", f"--address={address}", *flags], folder)


def address_of(server: Program) -> str:
    """Where a server says that it can be joined."""
    return server.wait_for("join: AsyncWANStrategy").split('"')[1]


def results(folder: Path) -> list[dict[str, Any]]:
    """What the processes of scripts/train.py have written, by rank."""
    found = [json.loads(path.read_text()) for path in folder.glob("result-*.json")]
    return sorted(found, key=lambda result: result["rank"])


def _environment(mark: str, extra: Mapping[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN) and k not in ALSO}
    root = str(Path(__file__).resolve().parents[2])
    return {**kept, MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": root, **JOIN, **extra}


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
