"""Nano GPT-2 under attack: n = 11 workers of which f = 2 are hostile, real text, the real coordinator, virtual time.

    python -m examples.experiments.attacked

Every worker computes rounds of AdamW from the newest published parameters that it has and submits them when its time
has come; honest speeds are 3, 1 and 0.3, hostile workers submit at speed 10. All happens in one process and one thread
around the server's coordinator, so a run repeats. Printed, one JSON object for each pair of rule and attack: the mean
loss (nats per token) on held-out files, and its distance to the attack-free run of the mean over the nine honest ones.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader

from examples.gpt2.data import TextData
from examples.gpt2.module import GPT2
from lightning_async.attacks import Seen, attack
from lightning_async.config import RunConfig
from lightning_async.layout import read_manifest
from lightning_async.server import Coordinator
from lightning_async.server.actions import Received, Send
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, Frame

N, F = 11, 2
SPEEDS, FAST = (3.0, 1.0, 0.3), 10.0
RULES = ("pipeline(nnm(f=2), trimmed_mean(f=2))", "multi_krum(f=2)", "pipeline(nnm(f=2), geometric_median)")
ATTACKS = ("sign_flip(k=10.0)", "alie(z=10.0)")


class Worker:
    """One worker: its share of the text, its optimizer's moments, and what it has of the run."""

    def __init__(self, rank: int, speed: float, how: str | None, start: Tensor, args: argparse.Namespace) -> None:
        self.name, self.rank, self.speed = f"w{rank}", rank, speed
        self.attack = attack(how) if how else None
        self.base, self.version, self.seq = start, 0, 0
        self.last: Tensor | None = None
        self.memory: dict[str, Tensor] = {}
        self._moments: dict[str, Any] = {}
        self._steps, self._lr, self._warmup = args.local_steps, args.lr, args.warmup

    def round(self, module: GPT2, batches: Iterator[Tensor]) -> Tensor:
        """The update of a few AdamW steps from the parameters at hand; its moments go on from round to round."""
        vector_to_parameters(self.base.clone(), module.parameters())
        optimizer = torch.optim.AdamW(module._groups(), lr=self._lr, betas=(0.9, 0.95))
        if self._moments:
            optimizer.load_state_dict(self._moments)
        for step in range(self._steps):
            done = self.seq * self._steps + step + 1
            for group in optimizer.param_groups:
                group["lr"] = self._lr * min(1.0, done / self._warmup)
            optimizer.zero_grad()
            module.loss(next(batches)).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
        self._moments = optimizer.state_dict()
        self.last = self.base - parameters_to_vector(module.parameters()).detach()
        return self.last


class Fleet:
    """n workers, the last f of them under the attack `how` (None: n - f workers, all honest)."""

    def __init__(self, rule: str, how: str | None, data: TextData, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.module, self._data, self._args, self.now = GPT2("nano"), data, args, 0.0
        start = parameters_to_vector(self.module.parameters()).detach()
        self._layout = read_manifest([["all", [start.numel()], "float32", "parameter"]])
        hostile = F if how else 0
        quorum = {"quorum": N - F - 3 + hostile} if rule == "mean" else {}
        config = RunConfig(
            aggregation=rule, workers=N - F + hostile, local_steps=args.local_steps, weight="constant", **quorum
        )
        self.coordinator = Coordinator(config, "attacked")
        speeds = [*itertools.islice(itertools.cycle(SPEEDS), N - F), *[FAST] * hostile]
        self.workers = [Worker(i, s, how if i >= N - F else None, start, args) for i, s in enumerate(speeds)]
        self._batches = [self._stream(worker.rank) for worker in self.workers]
        self._ids, self._times = itertools.count(1), torch.Generator().manual_seed(args.seed)
        self.events: list[events.Event] = []
        for worker in self.workers:
            self.say(worker, m.Hello(worker=worker.name, instance="1", tensors=self._layout.manifest,
                                     digest=self._layout.digest, rank=worker.rank))  # fmt: skip
        self.say(self.workers[0], m.Init(digest=self._layout.digest), (start.numpy().tobytes(), b""))

    def _stream(self, rank: int) -> Iterator[Tensor]:
        """Batches of this worker's share of the blocks, in an order of its own, for ever."""
        train = self._data.train
        assert train is not None
        generator = torch.Generator().manual_seed(1000 * self._args.seed + rank)
        share, size = range(rank, len(train), N), self._data.batch_size
        while True:
            order = torch.randperm(len(share), generator=generator).tolist()
            for first in range(0, len(order) - size + 1, size):
                yield torch.stack([train[share[i]] for i in order[first : first + size]])

    def say(self, worker: Worker, message: m.Message, payload: tuple[Frame, ...] = ()) -> Envelope:
        """The answer to `message`."""
        request = next(self._ids)
        event = Received(worker.name.encode(), Envelope(request, message, payload))
        actions = self.coordinator.handle(event, self.now)
        return next(a.envelope for a in actions if isinstance(a, Send) and a.envelope.id == request)

    def run(self, versions: int) -> Fleet:
        """Go on until the run is at this version, or training has diverged."""
        due = [(self._lasts(worker), i) for i, worker in enumerate(self.workers)]
        heapq.heapify(due)
        while self.coordinator.run.version < versions:
            self.now, i = heapq.heappop(due)
            if not self._turn(self.workers[i]):
                break
            heapq.heappush(due, (self.now + self._lasts(self.workers[i]), i))
        return self

    def _lasts(self, worker: Worker) -> float:
        return (0.9 + 0.2 * float(torch.rand((), generator=self._times))) / worker.speed

    def _turn(self, worker: Worker) -> bool:
        """One round of one worker; False when it is not finite. A hostile one needs no round of its own."""
        known = [other.last for other in self.workers[: N - F] if other.last is not None]
        if worker.attack is None or not known:
            sent = worker.round(self.module, self._batches[worker.rank])
        else:
            sent = known[worker.seq % len(known)]
        if worker.attack is not None:
            sent, worker.memory = worker.attack.submit(sent, Seen(known, N, F, seed=worker.seq), worker.memory)
        if not bool(torch.isfinite(sent).all()):
            return False
        worker.seq += 1
        steps = self._args.local_steps
        push = m.Push(seq=worker.seq, base=worker.version, digest=self._layout.digest, steps=steps)
        self.say(worker, push, (sent.numpy().tobytes(), b""))
        answer = self.say(worker, m.Pull(have=worker.version))
        if answer.message.form == "snapshot":
            worker.base = torch.frombuffer(bytearray(answer.payload[0]), dtype=torch.float32)
        worker.version = answer.message.version
        return True

    @torch.no_grad()
    def loss(self) -> float:
        """Mean loss of the published parameters on the held-out blocks, nats; infinite where it is not finite."""
        store = self.coordinator.run.store
        assert store is not None
        assert self._data.val is not None
        vector_to_parameters(store.parameters.clone(), self.module.parameters())
        losses = [(float(self.module.loss(batch)), len(batch)) for batch in DataLoader(self._data.val, 32)]
        found = sum(value * n for value, n in losses) / sum(n for _, n in losses)
        return found if found == found else float("inf")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=40)
    parser.add_argument("--local-steps", type=int, default=2, help="steps in a round")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", nargs="*", default=["mean", *RULES])
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS))
    parser.add_argument("--text", help="folder with *.py files; the standard library when not given")
    parser.add_argument("--cache", help="folder for the prepared text; the user's cache folder when not given")
    parser.add_argument("--held-out", type=float, default=0.02, help="fraction of the files kept for validation")
    return parser.parse_args(words)


def text(args: argparse.Namespace) -> TextData:
    data = TextData(batch_size=args.batch_size, text=args.text, cache=args.cache, held_out=args.held_out, val_blocks=64)
    data.setup()
    return data


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    data = text(args)
    base = Fleet("mean", None, data, args).run(args.versions).loss()
    print(json.dumps({"rule": "mean", "attack": None, "val_loss": round(base, 4)}), flush=True)
    for rule, how in itertools.product(args.rules, args.attacks):
        began = time.monotonic()
        found = Fleet(rule, how, data, args).run(args.versions).loss()
        row = {
            "rule": rule,
            "attack": how,
            "val_loss": round(found, 4),
            "above_attack_free": round(found / base - 1, 4),
        }
        print(json.dumps(row | {"minutes": round((time.monotonic() - began) / 60, 2)}), flush=True)


if __name__ == "__main__":
    main()
