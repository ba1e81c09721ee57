"""What robust aggregation costs a server beside the rule: memory of sparse updates that wait, time of the reputations.

`python -m bench slots`. Memory is the growth of a process's peak from n top-k 1 % updates of d numbers and one Krum
step, against the bytes of a dense [n, d]. Time is one `review` of dense updates against the rule itself.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from lightning_async.aggregation import aggregator
from lightning_async.codecs import topk
from lightning_async.config import RunConfig
from lightning_async.layout import read_manifest
from lightning_async.server import Coordinator
from lightning_async.server.actions import Received
from lightning_async.server.reputation import review
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope

N, D = 11, 20_000_000
REVIEWED = 10_000_000
CODEC = "topk(density=0.01, values='int8')"


def rows() -> Iterator[dict[str, Any]]:
    child = subprocess.run(
        [sys.executable, "-m", "bench.slots"], capture_output=True, text=True, check=True, timeout=600
    )
    grown, dense = float(child.stdout), N * 4 * D / 2**20
    yield {
        "bench": f"peak memory of {N} top-k 1 % updates of {D:.0e} numbers and a Krum step",
        "ours": grown, "reference": dense, "unit": "MiB", "ratio": grown / dense, "floor": 0.2, "lower": True,
    }  # fmt: skip
    torch.set_num_threads(1)
    updates = [torch.randn(REVIEWED) for _ in range(N - 1)]
    for spec in ("trimmed_mean(f=2)", "krum(f=2)"):
        rule = aggregator(spec)
        state = rule.init(REVIEWED)
        outcome = rule.apply(updates, [1.0] * len(updates), state)
        took = _best(lambda: rule.apply(updates, [1.0] * len(updates), state))  # noqa: B023
        seen = _best(lambda: review(updates, outcome.vector, outcome.influence))  # noqa: B023
        yield {
            "bench": f"reputations of {N - 1} updates of {REVIEWED:.0e} numbers beside {spec}",
            "ours": seen, "reference": took, "unit": "s", "ratio": seen / took, "floor": 2.0, "lower": True,
        }  # fmt: skip


def _best(work: Any, times: int = 3) -> float:
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return min(spent)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _grown() -> float:
    """MiB by which the peak grows from the pushes and the step."""
    tensors = [["w", [D], "float32", "parameter"]]
    digest, code = read_manifest(tensors).digest, topk(density=0.01, values="int8")
    config = RunConfig(aggregation="krum(f=2)", quorum=N, compression=CODEC, download_compression="none")
    coordinator = Coordinator(config, "bench")
    for rank in range(N):
        hello = m.Hello(worker=f"w{rank}", instance="1", tensors=tensors, digest=digest, rank=rank)
        coordinator.handle(Received(b"%d" % rank, Envelope(1, hello)), 0.0)
    coordinator.handle(Received(b"0", Envelope(2, m.Init(digest=digest), (bytes(4 * D), b""))), 0.0)
    payloads = [bytes(code.encode(torch.randn(D), {})[0]) for _ in range(N)]
    before = _peak_mib()
    for rank, payload in enumerate(payloads):
        push = m.Push(seq=1, base=0, digest=digest)
        coordinator.handle(Received(b"%d" % rank, Envelope(3, push, (payload, b""))), 1.0)
    assert coordinator.run.version == 1
    return _peak_mib() - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(_grown())
