"""One dense update of 500 MB over a line of 1 Mbit/s, for real: does it look dead to anybody on its way?

`python -m bench.slow_line` takes 70 minutes in which next to nothing is computed, so it is no part of `make bench`;
`--megabytes 5` is through in a minute. `serve` and `netem` are processes as people start them. Beside the update the
worker's beats go on, and every few seconds it asks something small; what these waited is what is shown. At the end
somebody with a good line reads the parameters and compares all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

from lightning_async.cli.asking import Talk
from lightning_async.layout import read_manifest
from lightning_async.transport import connect
from lightning_async.transport.base import Connection
from lightning_async.wire import messages as m
from lightning_async.wire.tensors import read_floats
from lightning_async.worker.link import Link

SMALL_EVERY_S = 10.0
SHOWN_EVERY_S = 60.0
ADDRESS = re.compile(r"tcp://[0-9.]+:[0-9]+")


class Worker:
    """A worker's link, pumped by whoever waits, and what it notes of its line."""

    def __init__(self, address: str, name: str, numbers: int) -> None:
        tensors = [["w", [numbers], "float32", "parameter"]]
        self.digest = read_manifest(tensors).digest
        self.dials = 0
        self.beats: list[float] = []
        hello = m.Hello(worker=name, instance=name, tensors=tensors, digest=self.digest)

        def dial() -> Connection:
            self.dials += 1
            return connect(address)

        heard: Callable[[m.Ack], None] = lambda ack: self.beats.append(time.monotonic())  # noqa: E731
        self.link = Link(dial, hello, lambda welcome: None, heard, address, 4 * numbers)

    def ask(self, message: m.Request, *payload: memoryview) -> list[m.Reply]:
        """Where the answer will be, if somebody pumps."""
        answers: list[m.Reply] = []
        self.link.request(message, lambda reply, _: answers.append(reply), (*payload, b"") if payload else ())
        return answers

    def wait(self, answers: list[m.Reply]) -> m.Reply:
        while not answers:
            self.link.pump(0.05)
        return answers[0]


@contextlib.contextmanager
def started(*words: str) -> Iterator[str]:
    """The address that a command of ours says first; it ends with the block."""
    process = subprocess.Popen([sys.executable, "-m", "lightning_async", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = ADDRESS.search(process.stdout.readline())
        assert found is not None, "it has ended; its errors stand above"
        yield found[0]
    finally:
        process.terminate()
        print(process.stdout.read().strip(), flush=True)
        process.wait(30.0)
        process.stdout.close()


def transfer(megabytes: int, line: str, limit_s: float) -> dict[str, Any]:
    """Raises TimeoutError after `limit_s`."""
    numbers = 250_000 * megabytes
    update = torch.arange(numbers, dtype=torch.float32).remainder_(977.0).add_(1.0)
    serve = ("serve", "--address", "tcp://127.0.0.1:0", "--compression", "none", "--outer", "sgd(lr=1.0)")
    with started(*serve) as address, started("netem", "--to", address, "--preset", line) as slow:
        first = Worker(address, "first", numbers)
        zeros = memoryview(torch.zeros(numbers).numpy()).cast("B")
        first.wait(first.ask(m.Init(digest=first.digest), zeros))
        first.link.close("done", 5.0)
        worker = Worker(slow, "slow", numbers)
        try:
            found = _push(worker, update, limit_s)
        finally:
            worker.link.close("done", 60.0)
        return {"line": line, "megabytes": megabytes, **found, "different_numbers": _different(address, update)}


def _push(worker: Worker, update: torch.Tensor, limit_s: float) -> dict[str, Any]:
    while not worker.link.joined:
        worker.link.pump(0.05)
    began = asked_at = shown_at = time.monotonic()
    push = m.Push(seq=1, base=0, digest=worker.digest)
    pushed = worker.ask(push, memoryview(update.numpy()).cast("B"))
    small: list[m.Reply] | None = None  # the answer to a small request, where one is awaited
    waits: list[float] = []
    while not pushed:
        worker.link.pump(0.05)
        now = time.monotonic()
        if small:
            waits.append(now - asked_at)
            small = None
        elif small is None and now - asked_at > SMALL_EVERY_S:
            small, asked_at = worker.ask(m.Share(key="nothing")), now
        if now - shown_at > SHOWN_EVERY_S:
            shown_at = now
            print(f"{now - began:.0f} s: {worker.link.traffic().sent_bytes / 1e6:.1f} MB up", flush=True)
        if now - began > limit_s:
            raise TimeoutError(f"{worker.link.traffic()} after {limit_s:.0f} s")
    took_s, receipt = time.monotonic() - began, pushed[0]
    beats = [began, *worker.beats, began + took_s]
    longest_s = max(after - before for before, after in itertools.pairwise(beats))
    return {
        "seconds": round(took_s, 1), "mbit_s": round(32e-6 * update.numel() / took_s, 4),
        "sent_of_bytes": round(worker.link.traffic().sent_bytes / (4 * update.numel()), 4),
        "accepted": isinstance(receipt, m.Receipt) and receipt.accepted, "dials": worker.dials,
        "beats": len(worker.beats), "longest_without_a_beat_s": round(longest_s, 2),
        "small_requests": len(waits), "small_median_s": round(median(waits or [0.0]), 3),
        "small_longest_s": round(max(waits, default=0.0), 3),
    }  # fmt: skip


def _different(address: str, update: torch.Tensor) -> int:
    """How many of the server's parameters are not what one step along `update` makes of zeros."""
    with Talk(address) as talk:
        talk.ask(m.Hello(worker="reader", instance="reader", role="observer"), 30.0)
        answer = talk.ask(m.Pull(), 120.0)
        assert isinstance(answer.message, m.Params)
        assert answer.message.form == "snapshot"
        return int((read_floats(answer.payload[0]) != -update).sum())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.slow_line", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--line", default="mobile_1mbps")
    parser.add_argument("--limit-s", type=float, default=6000.0)
    args = parser.parse_args()
    print(json.dumps(transfer(args.megabytes, args.line, args.limit_s)), flush=True)


if __name__ == "__main__":
    main()
