"""The embedded server as its owner sees it: a child process that lives as long as the owner wants, and never longer.

The other half, with the words that are spoken over the child's stdin and stdout, is cli/embedded.py. The child's output
goes to files, not pipes: it can never block on an owner that does not read, and no thread has to.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError, NetworkError
from lightning_async.keeping import StateDir, in_words
from lightning_async.restarts import own_group

SLICE_S = 0.05
START_S = 120.0  # importing torch from a cold network disk takes a while
QUIT_S = 0.5  # until a child that was told to quit, and has nothing to save, is killed
SAVE_S = 60.0  # the same for one that may be writing its last snapshot
TAIL_LINES = 20
LOCAL = "tcp://127.0.0.1:0"
log = logging.getLogger("lightning_async.server")


class EmbeddedServer:
    """A running server of our own; made by `begin`; who needs its address waits until it is ready.

    Its methods may be called in any order and more than once.
    """

    def __init__(self, process: subprocess.Popen[bytes], out: _Output, err: _Output) -> None:
        self._process, self._out, self._err = process, out, err
        self._owner = os.getpid()
        self.address = ""
        self._quit_s = QUIT_S
        atexit.register(self.quit)

    @classmethod
    def begin(
        cls,
        config: RunConfig,
        state_dir: str | Path | StateDir | None = None,
        events: str | Path | None = None,
        address: str = LOCAL,
        run: str = "embedded",
        public: bool = False,
        validation: str | None = None,
    ) -> EmbeddedServer:
        """A server that will listen soon; it imports torch first, which takes seconds."""
        order = {
            "config": config.as_dict(),
            "address": address,
            **in_words(state_dir),
            "events": None if events is None else str(events),
            "run": run,
            "public": public,
            "validation": validation,
        }
        server = cls._spawn()
        server._quit_s = QUIT_S if state_dir is None else SAVE_S
        server._say(json.dumps(order))
        return server

    def wait_until_ready(self, timeout_s: float = START_S) -> None:
        """After this `address` is where it listens. Raises ConfigError for what it refuses, NetworkError when it does
        not come up; then it is gone."""
        if self.address:
            return
        try:
            self._wait_until_ready(timeout_s)
        except BaseException:
            self._end(at_once=True)
            raise

    @classmethod
    def _spawn(cls) -> EmbeddedServer:
        out, err = _Output(), _Output()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "lightning_async", "serve", "--embedded"],
                stdin=subprocess.PIPE,
                stdout=out.writer,
                stderr=err.writer,
                bufsize=0,
                env=_environment(),
                **own_group(),
            )
        except BaseException:
            out.close()
            err.close()
            raise
        out.writer.close()
        err.writer.close()
        return cls(process, out, err)

    def __repr__(self) -> str:
        code = self._process.returncode
        return (
            f"<EmbeddedServer {self.address} | pid {self._process.pid} | {'up' if code is None else f'ended {code}'}>"
        )

    def poll(self) -> int | None:
        """The server's exit code, None while it runs. What it has logged since the last call goes to our log."""
        code = self._process.poll() if os.getpid() == self._owner else None
        for line in self._err.lines():
            log.warning("%s", line)
        return code

    def tail(self) -> str:
        """The last lines that the server logged, and why it refused to start, if it did."""
        word, _, why = self._out.first_line().partition(" ")
        return "\n".join([*self._err.text().splitlines()[-TAIL_LINES:], *([why] if word == "FAILED" else [])])

    def quit(self) -> None:
        """End the server now. Afterwards its process and its port are gone."""
        if os.getpid() == self._owner:
            self._say("QUIT")
            self._end()

    def _say(self, line: str) -> None:
        pipe = self._process.stdin
        if pipe is not None and not pipe.closed and os.getpid() == self._owner:
            with suppress(OSError):  # it has ended; `poll` says so
                pipe.write(line.encode() + b"\n")

    def _wait(self, timeout_s: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self.poll() is not None

    def _wait_until_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not (line := self._out.first_line()):
            ended = self._process.poll()
            if ended is not None and not (line := self._out.first_line()):
                raise NetworkError(f"the embedded server ended with code {ended} at its start:\n{self.tail()}")
            if not line and time.monotonic() >= deadline:
                raise NetworkError(f"the embedded server did not listen within {timeout_s:.0f} s:\n{self.tail()}")
            time.sleep(SLICE_S)
        word, _, rest = line.partition(" ")
        if word != "READY":
            raise ConfigError(f"the embedded server refused to start: {rest if word == 'FAILED' else line}")
        self.address = rest

    def _end(self, at_once: bool = False) -> None:
        """See to it that the process is gone, and let go of everything that belongs to it."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        if at_once:
            self._process.kill()
        elif not self._wait(self._quit_s):
            level = logging.INFO if self._quit_s == QUIT_S else logging.WARNING  # nothing, or something, is lost by it
            log.log(level, "the embedded server did not end within %.1f s; killing it", self._quit_s)
            self._process.kill()
        self._process.wait()
        self._out.close()
        self._err.close()
        atexit.unregister(self.quit)


class _Output:
    """What a child writes: `writer` is for the child, this process reads along with a position of its own."""

    def __init__(self) -> None:
        descriptor, name = tempfile.mkstemp(prefix="lightning-async-")
        self.writer: IO[bytes] = os.fdopen(descriptor, "wb")
        self._path = Path(name)
        self._reader = self._path.open("rb")
        self._forwarded = 0
        self._kept: str | None = None
        self._remove()

    def text(self) -> str:
        """Everything so far."""
        if self._kept is not None:
            return self._kept
        self._reader.seek(0)
        return self._reader.read().decode(errors="replace")

    def first_line(self) -> str:
        """The first line once it is whole; empty before."""
        line, end, _ = self.text().partition("\n")
        return line.strip() if end else ""

    def lines(self) -> list[str]:
        """The whole lines that came since the last call."""
        if self._kept is not None:
            return []
        self._reader.seek(self._forwarded)
        whole = self._reader.read().rpartition(b"\n")[0]
        self._forwarded += len(whole) + 1 if whole else 0
        return whole.decode(errors="replace").splitlines()

    def close(self) -> None:
        if self._kept is None:
            self._kept = "\n".join(self.text().splitlines()[-TAIL_LINES:])
            self._reader.close()
            self.writer.close()
            self._remove()

    def _remove(self) -> None:
        """At once where an open file needs no name (POSIX), else when it is closed."""
        with suppress(OSError):
            self._path.unlink()


def _environment() -> dict[str, str]:
    """The child's: one thread unless the caller said otherwise, no GPU, and this very package."""
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **os.environ, "CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).resolve().parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH", "")]))
    return environment
