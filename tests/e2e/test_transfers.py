"""Large transfers over bad lines that break: real sockets, the shaping proxy, a server and a worker's link.

The rates and latencies of the presets are overridden, so that a test takes seconds; loss, duplicates and the breaks
are what they are. A break takes what was under way, and that is all that may be sent twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from eventually import eventually

from lightning_async.config import RunConfig
from lightning_async.layout import read_manifest
from lightning_async.links import link
from lightning_async.server.host import ServerThread
from lightning_async.transport import connect
from lightning_async.transport.shaping import Proxy
from lightning_async.wire import messages as m
from lightning_async.worker.link import Link

LINES = {
    "degraded": "degraded(loss=0.05, latency_ms=0.1, jitter_ms=0.1, up_mbps=1000, down_mbps=1000)",
    "brownout": (
        "brownout(latency_ms=2, up_mbps=100, down_mbps=100, brownout=cycle(every_s=2, lasts_s=0.4, factor=0.02))"
    ),
}
MEGABYTES = 100
MOST = 1.05  # times the bytes
PATIENT_S = 800.0


class Worker:
    """A link that is pumped by whoever waits for an answer."""

    def __init__(self, address: str, megabytes: int, name: str) -> None:
        self.tensors = [["w", [250_000 * megabytes], "float32", "parameter"]]
        self.digest = read_manifest(self.tensors).digest
        hello = m.Hello(worker=name, instance=name, tensors=self.tensors, digest=self.digest)
        self.welcomes: list[m.Welcome] = []
        self.beats: list[float] = []
        self.dials = 0
        heard: Callable[[m.Ack], None] = lambda ack: self.beats.append(time.monotonic())  # noqa: E731

        def dial() -> object:
            self.dials += 1
            return connect(address)

        self.link = Link(dial, hello, self.welcomes.append, heard, address, 4 * 250_000 * megabytes)  # type: ignore[arg-type]

    def ask(self, message: m.Request, *payload: object) -> list[tuple[m.Reply, tuple[memoryview, ...]]]:
        """Where the answer will be, if somebody pumps."""
        answers: list[tuple[m.Reply, tuple[memoryview, ...]]] = []
        self.link.request(message, lambda reply, frames: answers.append((reply, frames)), payload)  # type: ignore[arg-type]
        return answers

    def leave(self) -> None:
        self.link.close("done", 5.0)


@pytest.fixture(params=LINES)
def run(request: pytest.FixtureRequest) -> Iterator[tuple[str, int, str]]:
    """(address of a server whose run has begun, megabytes of its model, line)."""
    megabytes = MEGABYTES
    server = ServerThread(RunConfig(beat_s=0.5))
    try:
        first = Worker(server.address, megabytes, "first")
        zeros = torch.zeros(250_000 * megabytes)
        done = first.ask(m.Init(digest=first.digest), zeros.numpy().data.cast("B"), b"")
        eventually(lambda: first.link.pump(0.05) or done, PATIENT_S)
        first.leave()
        yield server.address, megabytes, LINES[request.param]
    finally:
        server.close()


def breaking(line: str, megabytes: int) -> str:
    """`line` with three breaks, after 20, 50 and 80 percent of so many megabytes."""
    at_mb = ", ".join(str(share * megabytes) for share in (0.2, 0.5, 0.8))
    return f"{line[:-1]}, cuts=cuts(at_mb=({at_mb})))"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_disconnects_cost_a_twentieth_in_each_direction(run: tuple[str, int, str]) -> None:
    address, megabytes, line = run
    shape, size = link(breaking(line, megabytes)), megabytes * 1_000_000
    with Proxy(address, shape, seed=1) as above, Proxy(address, shape, seed=2) as below:
        up, down = Worker(above.address, megabytes, "up"), Worker(below.address, megabytes, "down")
        try:
            pushed = up.ask(m.Push(seq=1, base=0, digest=up.digest), torch.ones(size // 4).numpy().data.cast("B"), b"")
            pulled = down.ask(m.Pull())

            def over() -> bool:
                up.link.pump(0.01)
                down.link.pump(0.01)
                return bool(pushed and pulled)

            began = time.monotonic()
            eventually(over, PATIENT_S)
            sent, got = above.carried_bytes(up=True) / size, below.carried_bytes(up=False) / size
            print(f"{shape.spec}: {sent:.4f} up, {got:.4f} down of {size} bytes, {time.monotonic() - began:.1f} s")
            receipt, (params, payload) = pushed[0][0], pulled[0]
            assert isinstance(receipt, m.Receipt)
            assert receipt.accepted, receipt
            assert isinstance(params, m.Params)
            assert params.version == 0, "what had begun to come was completed"
            assert not torch.frombuffer(bytearray(payload[0]), dtype=torch.float32).any()
            assert (above.cuts, below.cuts) == (3, 3)
            assert 1.0 < sent <= MOST
            assert 1.0 < got <= MOST
            for worker in (up, down):
                assert len(worker.beats) > 1, "they passed in between"
                assert worker.dials == 1, "no silence was long enough to dial anew"
        finally:
            up.leave()
            down.leave()
