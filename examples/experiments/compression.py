"""What compression costs and saves: nano GPT-2 on real text, three unequal workers, equal tokens.

    python -m examples.experiments.compression

Real engines, codecs, server and sockets, but a schedule that no machine's load can change: the workers compute one
after the other in the order in which workers of speeds 2, 1 and 0.3 would finish their rounds, each from the parameters
that it had got when its round began. So staleness is that of unequal workers, and a run repeats but for float noise.
Each variant starts from the same weights and sees the same batches. Printed: the loss (nats) on held-out files of the
parameters that all workers hold at the end, and the bytes at the workers' sockets: for joining (the first parameters,
up once and down to each), and then in each direction.
"""

from __future__ import annotations

import argparse
import heapq
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from examples.gpt2.data import TextData
from examples.gpt2.module import GPT2
from lightning_async.config import RunConfig
from lightning_async.server import ServerThread
from lightning_async.worker.optimizer import AsyncOptimizer

SPEEDS = (2.0, 1.0, 0.3)
VARIANTS = {
    "uncompressed": ("none", "none"),
    "int4, none": ("int4", "none"),
    "top-k 2 %, top-k 5 %": ("topk(density=0.02)", "topk(density=0.05, values='int8')"),
    "top-k 1 %, top-k 5 %": ("topk(density=0.01)", "topk(density=0.05, values='int8')"),
}


class Worker:
    """A worker with its own model, optimizer and share of the text, which computes a round when it is told to."""

    def __init__(self, server: ServerThread, rank: int, data: TextData, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.model = GPT2("nano", warmup_steps=args.warmup)
        made = self.model.configure_optimizers()
        self.schedule = made["lr_scheduler"]["scheduler"]
        self.optimizer = AsyncOptimizer(made["optimizer"], self.model, server.address, name=f"worker-{rank}")
        self._batches = self._stream(data, rank, args.seed)

    @staticmethod
    def _stream(data: TextData, rank: int, seed: int) -> Iterator[Tensor]:
        """Batches of this worker's share of the blocks, in an order of its own, for ever."""
        assert data.train is not None
        generator = torch.Generator().manual_seed(1000 * seed + rank)
        share = range(rank, len(data.train), len(SPEEDS))
        while True:
            order = torch.randperm(len(share), generator=generator).tolist()
            for first in range(0, len(order) - data.batch_size + 1, data.batch_size):
                yield torch.stack([data.train[share[i]] for i in order[first : first + data.batch_size]])

    def round(self, steps: int) -> None:
        """Compute a round, send it, and take what is published then."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model.loss(next(self._batches)).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
        self.optimizer.engine.flush()


def traffic(workers: Sequence[Worker]) -> tuple[int, int]:
    """Bytes sent and received at these workers' sockets so far."""
    counts = [worker.optimizer.engine.traffic for worker in workers]
    return sum(count.sent_bytes for count in counts), sum(count.received_bytes for count in counts)


def loss(model: GPT2, data: TextData) -> float:
    """Mean loss of the model on the held-out blocks, nats."""
    assert data.val is not None
    model.eval()
    with torch.no_grad():
        losses = [(float(model.loss(batch)), len(batch)) for batch in DataLoader(data.val, 32)]
    model.train()
    return sum(value * n for value, n in losses) / sum(n for _, n in losses)


def run(name: str, data: TextData, args: argparse.Namespace) -> dict[str, object]:
    """Train one variant to its end."""
    began = time.monotonic()
    upload, download = VARIANTS[name]
    config = RunConfig(
        weight="constant",
        local_steps=args.local_steps,
        compression=upload,
        download_compression=download,
        outer=args.outer,
        workers=len(SPEEDS),
        follow=False,
    )
    with ServerThread(config) as server, ExitStack() as leaving:
        workers = [Worker(server, rank, data, args) for rank in range(len(SPEEDS))]
        for worker in workers:
            leaving.callback(worker.optimizer.engine.close)
        joining = traffic(workers)
        ends = [(args.local_steps / speed, rank) for rank, speed in enumerate(SPEEDS)]
        heapq.heapify(ends)
        rounds = [0] * len(SPEEDS)
        for _ in range(args.steps // args.local_steps):
            now, rank = heapq.heappop(ends)
            workers[rank].round(args.local_steps)
            rounds[rank] += 1
            heapq.heappush(ends, (now + args.local_steps / SPEEDS[rank], rank))
        first = workers[0].optimizer.engine
        first.align()
        sent, received = (now - before for now, before in zip(traffic(workers), joining, strict=True))
        staleness = server.coordinator.run.staleness
        return {
            "variant": name,
            "val_loss": round(loss(workers[0].model, data), 4),
            "joining_bytes": sum(joining),
            "sent_bytes": sent,
            "received_bytes": received,
            "parameters": first.shared.layout.d,
            "rounds": rounds,
            "staleness_p50": staleness.quantile(0.5),
            "staleness_max": max(staleness.counts, default=0),
            "minutes": round((time.monotonic() - began) / 60, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1600, help="local optimizer steps of all workers together")
    parser.add_argument("--local-steps", type=int, default=4, help="steps in a round")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--outer", default="sgd(lr=1.0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", help="folder with *.py files; the standard library when not given")
    parser.add_argument("--cache", help="folder for the prepared text; the user's cache folder when not given")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), help="some of the variants")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = TextData(batch_size=args.batch_size, text=args.text, cache=args.cache)
    data.setup()
    base: dict[str, object] = {}
    for name in args.only or VARIANTS:
        row = run(name, data, args)
        base = base or row
        row["loss_vs_first"] = f"{100 * (float(str(row['val_loss'])) / float(str(base['val_loss'])) - 1):+.2f} %"
        for way in ("sent", "received"):
            row[f"{way}_saved"] = f"{int(str(base[f'{way}_bytes'])) / int(str(row[f'{way}_bytes'])):.1f}x"
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
