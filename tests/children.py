"""Processes of one test: whatever happens to the test, they end with it, with all that they have started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import IO, Any


class Children:
    """Starts processes, each as the leader of a group, and ends the groups and closes the pipes in `end`."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """As Popen, with text and a pipe from stdout."""
        chosen = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True, **options}
        self._started.append(subprocess.Popen(list(command), **chosen))
        return self._started[-1]

    def end(self) -> None:
        """Afterwards none of them runs and none of their pipes is open."""
        for process in self._started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                _close(pipe)


def _close(pipe: IO[str] | None) -> None:
    with contextlib.suppress(BrokenPipeError):  # what it never read
        if pipe is not None:
            pipe.close()
