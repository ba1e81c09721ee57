"""`serve --embedded`: a server that belongs to the process which started it. For programs, not for people.

The owner (strategy/embedded.py) speaks on our stdin, a line at a time (the first may hold all of KEYS):
    {"config": {...}, "address": "tcp://127.0.0.1:0", "state_dir": null, "events": null, "run": "name"}   first
    QUIT     end now
We answer once, on stdout: `READY <address>`, or `FAILED <message>` and exit code 2. The log goes to stderr.

Rule of this file: we never outlive the owner. A closed stdin, or another parent than at the start, means
that it has died (a forked helper of the owner may keep the pipe open, hence the second sign). SIGINT is ignored: Ctrl+C
reaches the whole process group, and the owner still needs us for its last checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from types import FrameType
from typing import TYPE_CHECKING, Any

from lightning_async.cli.place import Place, read_place
from lightning_async.config import read_config
from lightning_async.errors import AsyncWANError, ConfigError

if TYPE_CHECKING:
    from lightning_async.cli.hosting import Hosted

STDIN = 0
LONGEST_LINE_BYTES = 2**20
log = logging.getLogger(__name__)
KEYS = {"config", *(field.name for field in fields(Place))}


class Owner:
    """What the owner has said so far. `start` reads on in a thread, so that the server's loop never waits for it."""

    def __init__(self, descriptor: int = STDIN) -> None:
        self._lines = _lines(descriptor)
        self._parent = os.getppid()
        self._silent = self._halted = False
        self.hurry = False

    def first(self) -> str:
        """The first line; empty when there was none."""
        return next(self._lines, "")

    def start(self) -> None:
        threading.Thread(target=self._listen, name="lightning-async-owner", daemon=True).start()

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM's handler."""
        self._halted = self.hurry = True

    @property
    def halted(self) -> bool:
        """Whether SIGTERM came."""
        return self._halted

    def why_stop(self) -> str:
        """The reason to stop serving now; empty: none."""
        if self.hurry:
            return "terminated" if self._halted else "its owner has stopped it"
        return "its owner has died" if self._silent or os.getppid() != self._parent else ""

    def _listen(self) -> None:
        try:
            for line in self._lines:
                if line == "QUIT":
                    self.hurry = True
                else:
                    log.warning("got %r from the owner, expected QUIT", line[:80])
        finally:
            self._silent = True


def _lines(descriptor: int) -> Iterator[str]:
    """Lines from a raw descriptor: a thread that sits in `sys.stdin` would hold its lock when the interpreter ends."""
    rest = b""
    while got := os.read(descriptor, 65536):
        *whole, rest = (rest + got).split(b"\n")
        yield from (line.decode(errors="replace").strip() for line in whole)
        if len(rest) > LONGEST_LINE_BYTES:
            return


def run() -> int:
    """Serve for the owner on stdin; the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    owner = Owner()
    signal.signal(signal.SIGTERM, owner.terminate)
    try:
        hosted = _open(owner.first())
    except AsyncWANError as error:
        print("FAILED", " ".join(str(error).split()), flush=True)
        return 2
    owner.start()
    with hosted:
        print("READY", hosted.service.address, flush=True)
        hosted.serve(owner.why_stop, lambda: owner.hurry)
    logging.shutdown()
    os._exit(128 + signal.SIGTERM if owner.halted else 0)  # all is closed; taking torch down would cost half a second


def _open(line: str) -> Hosted:
    order = _order(line)
    config, place = read_config(order.pop("config", {})), read_place(order)
    from lightning_async.cli.hosting import host  # imports torch; what is wrong above is said before

    return host(config, place)


def _order(line: str) -> dict[str, Any]:
    try:
        order = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"the first line on stdin must be JSON; got {line[:80]!r}: {error}") from error
    if not isinstance(order, dict) or not isinstance(order.get("config", {}), dict) or set(order) - KEYS:
        raise ConfigError(f"the first line on stdin must be an object of {', '.join(sorted(KEYS))}; got {line[:80]!r}")
    return order
