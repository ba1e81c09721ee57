"""Submissions of 5 MB, and beats, to a server that takes chunks against one to which everything goes whole.

A worker's link and a server in a thread, over TCP on loopback, as in a run: framing, checksums, decoding, a version for
each update. A fast line is known after the first message, and then everything goes whole: what is measured is what
knowing about chunks costs. The third row has the line's speed forgotten each time, so that every submission is cut.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from bench.turns import in_turn, row
from lightning_async.config import RunConfig
from lightning_async.layout import read_manifest
from lightning_async.server.host import ServerThread
from lightning_async.transport import connect
from lightning_async.transport.base import Connection
from lightning_async.wire import messages as m
from lightning_async.worker.link import Link

NUMBERS = 1_250_000
UPDATES = 20
BEATS = 2000


class Worker:
    """A member whose run has begun."""

    def __init__(self, address: str, name: str, cuts: bool) -> None:
        tensors = [["w", [NUMBERS], "float32", "parameter"]]
        self.digest, self._cuts, self._address = read_manifest(tensors).digest, cuts, address
        hello = m.Hello(worker=name, instance=name, tensors=tensors, digest=self.digest)
        self.link = Link(self._dial, hello, lambda welcome: None, lambda ack: None, address, 4 * NUMBERS)
        self._zeros, self._seq = np.zeros(NUMBERS, np.float32), 0
        while not self.link.joined:
            self.link.pump(0.05)
        self._ask(m.Init(digest=self.digest), memoryview(self._zeros).cast("B"))

    def _dial(self) -> Connection:
        connection = connect(self._address)
        connection.cuts = self._cuts
        return connection

    def _ask(self, message: m.Request, *payload: memoryview) -> m.Reply:
        answers: list[m.Reply] = []
        self.link.request(message, lambda reply, _: answers.append(reply), (*payload, b"") if payload else ())
        while not answers:
            self.link.pump(0.05)
        return answers[0]

    def submissions(self, forget: bool = False) -> float:
        """GB/s."""
        began = time.perf_counter()
        for _ in range(UPDATES):
            if forget:
                self.link._freight._speeds.clear()
            self._seq += 1
            push = m.Push(seq=self._seq, base=self._seq - 1, digest=self.digest)
            reply = self._ask(push, memoryview(self._zeros).cast("B"))
            assert isinstance(reply, m.Receipt)
            assert reply.accepted
        return UPDATES * 4 * NUMBERS / (time.perf_counter() - began) / 1e9

    def beats(self) -> float:
        """Round trips a second."""
        began = time.perf_counter()
        for _ in range(BEATS):
            self._ask(m.Beat())
        return BEATS / (time.perf_counter() - began)

    def close(self) -> None:
        self.link.close("done", 1.0)


def rows() -> Iterator[dict[str, Any]]:
    with ServerThread(RunConfig(beat_s=10.0)) as one, ServerThread(RunConfig(beat_s=10.0)) as other:
        ours, whole = Worker(one.address, "a", True), Worker(other.address, "b", False)
        try:
            ours.submissions()
            whole.submissions()
            yield made("submissions_5MB", "GB/s", 0.95, ours.submissions, whole.submissions)
            yield made("beats", "1/s", 0.95, ours.beats, whole.beats)
            cut = partial(ours.submissions, forget=True)
            yield made("submissions_5MB_all_in_chunks", "GB/s", 0.0, cut, whole.submissions)
        finally:
            ours.close()
            whole.close()


def made(bench: str, unit: str, floor: float, ours: Callable[[], float], whole: Callable[[], float]) -> dict[str, Any]:
    rates = in_turn(ours, whole)
    return row(f"chunks_{bench}", unit, floor, rates, reference_is="the same server and link, everything whole")


if __name__ == "__main__":
    for measured in rows():
        print(json.dumps(measured), flush=True)
