"""A program that serves runs in forked children which kill themselves, with SIGKILL, where they are told to.

It imports torch once, so that a server's life costs milliseconds. On its stdin, a line each: the JSON of a Life. On its
stdout: `READY <pid> <address>` once that life listens, `DIED <pid>` when it is over. It ends when the host does.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lightning_async.config import RunConfig
from lightning_async.persistence import direct, payloads, write
from lightning_async.server import Keeper, Service
from lightning_async.server.recovery import recorded
from lightning_async.transport import listen
from lightning_async.transport.base import Frame, Listener


@dataclass(frozen=True)
class Life:
    """One server: of which run, and the point at which it dies at the `at`-th time; none: it is killed from outside."""

    folder: str
    config: dict[str, Any]
    point: str = ""
    at: int = 1
    every_versions: int = 4
    mutation: str = ""
    keep: bool = False


@dataclass
class Fate:
    """Counts how often its point was passed, and ends the process there."""

    point: str
    left: int
    seen: dict[str, int] = field(default_factory=dict)

    def __call__(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


class Mortal(Listener):
    """A listener whose server may die after it has read a message, or before or after it answers one."""

    def __init__(self, inner: Listener, fate: Fate) -> None:
        self._inner, self._fate, self.address = inner, fate, inner.address

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        got = self._inner.receive(timeout_s)
        if got is not None:
            self._fate("received")
        return got

    def send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        self._fate("answering")
        sent = self._inner.send(peer, frames)
        self._fate("answered")
        return sent

    def wake(self) -> None:
        self._inner.wake()

    def limit(self, largest_message_bytes: int) -> None:
        self._inner.limit(largest_message_bytes)

    def close(self) -> None:
        self._inner.close()


def live(life: Life) -> None:
    """Serve until killed, or until the host has gone."""
    mutate(life.mutation)
    direct.DIRECT_BYTES = 10_000 if life.at % 2 else 2**18  # one life writes payloads directly, the next does not
    fate, folder = Fate(life.point, life.at), Path(life.folder)
    recorder = recorded(RunConfig(**life.config), "crashing", folder, time.monotonic(), run_id="one", at=fate)
    keeper = Keeper(
        folder,
        store=partial(write, at=fate),
        every_versions=life.every_versions,
        commits=recorder.commits,
        prunes=not life.keep,
    )
    listener = Mortal(listen("tcp://127.0.0.1:0"), fate)
    service = Service(recorder.coordinator, listener, keeper=keeper, recorder=recorder)
    os.write(1, f"READY {os.getpid()} {service.address}\n".encode())
    host = os.getppid()
    while os.getppid() == host:
        service.turn()


def mutate(what: str) -> None:
    """Remove one defence, to see that the tests notice."""
    from lightning_async.persistence.commits import Commits
    from lightning_async.server import exchange, recording
    from lightning_async.server.recorder import Recorder

    if what == "answer at once":  # before what it tells of is durable
        Recorder.durable = property(lambda self: self.submitted)  # type: ignore[method-assign,assignment]
        append, told = Commits.submit, 0.005
        Commits.submit = lambda self, record: (append(self, record), time.sleep(0))[0]  # type: ignore[method-assign]
        Commits._turn = _slowly(Commits._turn, told)  # type: ignore[method-assign]
    elif what == "no deduplication":
        exchange.push = _without_receipts(exchange.push)
        from lightning_async.server import admission, coordinator
        from lightning_async.wire.messages import Push

        admission.check_place = lambda *_: None  # type: ignore[assignment]
        coordinator.ANSWERS[Push] = exchange.push
    elif what == "no pushes in the journal":
        recording.CHANGING = tuple(kind for kind in recording.CHANGING if kind.__name__ != "Push")  # type: ignore[misc]


def _slowly(turn: Any, seconds: float) -> Any:
    def turned(self: Any) -> bool:
        time.sleep(seconds)
        return bool(turn(self))

    return turned


def _without_receipts(push: Any) -> Any:
    def pushed(run: Any, peer: bytes, member: Any, envelope: Any) -> Any:
        member.receipts.clear()
        return push(run, peer, member, envelope)

    return pushed


def reap(*_: object) -> None:
    """Say which children have died. None stays a zombie: who asks for it must see that it has gone."""
    try:
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            os.write(1, f"DIED {pid}\n".encode())
    except ChildProcessError:
        pass


def main() -> None:
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    payloads.SEGMENT_BYTES = 100_000
    signal.signal(signal.SIGCHLD, reap)
    os.write(1, b"HOST\n")
    rest = b""
    while True:
        ready, _, _ = select.select([0], [], [], 1.0)
        if not ready:
            continue
        read = os.read(0, 65536)
        if not read:
            return
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                try:
                    live(Life(**json.loads(line)))
                except BaseException:
                    logging.exception("a server ended by itself")
                finally:
                    os._exit(1)


if __name__ == "__main__":
    main()
