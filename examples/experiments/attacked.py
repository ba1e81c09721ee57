"""Nano GPT-2 under attack: n = 11 workers of which f = 2 are hostile, real text, the real coordinator, virtual time.

    python -m examples.experiments.attacked --out attacked.jsonl

Every worker computes rounds of AdamW from the newest published parameters that it has and submits them when its time
has come; honest speeds are 3, 1 and 0.3. Hostile workers submit at speed 10: what their attack makes of one round from
the parameters that they have, computed once for these. All happens in one process and one thread around the server's
coordinator, so a run repeats. Told for each rule, attack and split: the mean loss (nats per token)
and the share of tokens foretold rightly on held-out files, against the attack-free mean over the nine honest workers of
the same split, quorum and seed. Where the shares are unlike (`sources`), a step waits for all workers, as
docs/aggregation.md advises. `--out FILE` keeps the runs, and what is in it is not run again.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader

from examples.experiments.attackers import DEVASTATING, attackers
from examples.experiments.kept import Kept
from examples.experiments.sources import shares
from examples.gpt2.data import TextData
from examples.gpt2.module import GPT2, SIZES
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
RULES = (  # one of each family: by coordinate, by selection, by a centre
    "pipeline(arc(f=2), nnm(f=2), trimmed_mean(f=2))",
    "pipeline(clip_to_median_norm(), mda(f=2))",
    "pipeline(nnm(f=2), geometric_median)",
)
ATTACKS = attackers(SIZES["nano"].tokens)
SPLITS = {"random": None, "sources": 0.3}
Batch = tuple[Tensor, Tensor]  # input and target token ids, [b, block] each


class Worker:
    """One worker: its blocks of the text, its optimizer's moments, and what it has of the run."""

    def __init__(self, name: str, speed: float, how: str | None, start: Tensor, batches: Iterator[Batch]) -> None:
        self.name, self.speed, self.batches = name, speed, batches
        self.attack = attack(how) if how else None
        self.base, self.version, self.seq = start, 0, 0
        self.last: Tensor | None = None
        self.memory: dict[str, Tensor] = {}
        self._moments: dict[str, Any] = {}
        self._rounds, self._made_at = 0, -1

    def round(self, module: GPT2, args: argparse.Namespace) -> Tensor:
        """The update of a few AdamW steps from the parameters at hand; its moments go on from round to round."""
        vector_to_parameters(self.base.clone(), module.parameters())
        optimizer = torch.optim.AdamW(module._groups(), lr=args.lr, betas=(0.9, 0.95), fused=True)
        if self._moments:
            optimizer.load_state_dict(self._moments)
        for step in range(args.local_steps):
            done = self._rounds * args.local_steps + step + 1
            for group in optimizer.param_groups:
                group["lr"] = args.lr * min(1.0, done / args.warmup)
            optimizer.zero_grad()
            inputs, targets = next(self.batches)
            functional.cross_entropy(module(inputs).flatten(0, 1), targets.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
        self._moments = optimizer.state_dict()
        self._rounds += 1
        return self.base - parameters_to_vector(module.parameters()).detach()

    def sends(self, module: GPT2, args: argparse.Namespace, known: Sequence[Tensor]) -> Tensor:
        """What this worker submits now; a hostile one knows the honest ones' last updates."""
        if self.attack is None:
            self.last = self.round(module, args)
        elif self.last is None or self._made_at != self.version:
            seen = Seen(known, N, F, seed=self.seq)
            self.last, self.memory = self.attack.submit(self.round(module, args), seen, self.memory)
            self._made_at = self.version
        return self.last


class Fleet:
    """n workers, the last f of them under the attack `how` (None: n - f workers, all honest)."""

    def __init__(
        self, rule: str, how: str | None, data: TextData, args: argparse.Namespace, split: str = "random"
    ) -> None:
        torch.manual_seed(args.seed)
        self.module, self._data, self._args, self.now = GPT2("nano"), data, args, 0.0
        start = parameters_to_vector(self.module.parameters()).detach()
        self._layout = read_manifest([["all", [start.numel()], "float32", "parameter"]])
        hostile = F if how else 0
        quorum = {"quorum": "all"} if split == "sources" else {"quorum": N - F - 3 + hostile} if rule == "mean" else {}
        config = RunConfig(
            aggregation=rule, workers=N - F + hostile, local_steps=args.local_steps, weight="constant", **quorum
        )
        self.coordinator = Coordinator(config, "attacked")
        assert data.train is not None
        mine = shares(data, N - F, SPLITS[split], args.seed)
        self.workers = [
            Worker(f"w{i}", speed, None, start, self._stream(i, mine[i]))
            for i, speed in enumerate(itertools.islice(itertools.cycle(SPEEDS), N - F))
        ]
        everything = np.arange(len(data.train))
        self.workers += [Worker(f"w{i}", FAST, how, start, self._stream(i, everything, how)) for i in range(N - F, N)][
            :hostile
        ]
        self._ids, self._times = itertools.count(1), torch.Generator().manual_seed(args.seed)
        self.events: list[events.Event] = []
        for rank, worker in enumerate(self.workers):
            self.say(worker, m.Hello(worker=worker.name, instance="1", tensors=self._layout.manifest,
                                     digest=self._layout.digest, rank=rank))  # fmt: skip
        self.say(self.workers[0], m.Init(digest=self._layout.digest), (start.numpy().tobytes(), b""))

    def _stream(self, rank: int, blocks: NDArray[np.int64], how: str | None = None) -> Iterator[Batch]:
        """Batches of these blocks, as the attack poisons them, in an order of this worker's own, for ever."""
        train, poison = self._data.train, attack(how).data if how else None
        assert train is not None
        generator = torch.Generator().manual_seed(1000 * self._args.seed + rank)
        size = self._data.batch_size
        while True:
            order = torch.randperm(len(blocks), generator=generator).tolist()
            for first in range(0, len(order) - size + 1, size):
                rows = [train[int(blocks[i])] for i in order[first : first + size]]
                pairs = [(row[:-1], row[1:]) for row in rows]
                drawn = pairs if poison is None else list(poison(pairs))
                yield torch.stack([x for x, _ in drawn]), torch.stack([y for _, y in drawn])

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
        """One round of one worker; False when it is not finite."""
        known = [other.last for other in self.workers[: N - F] if other.last is not None]
        sent = worker.sends(self.module, self._args, known)
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
    def held_out(self) -> tuple[float, float]:
        """Of the published parameters on the held-out blocks: the mean loss in nats, infinite where it is not finite,
        and the share of tokens that are foretold rightly."""
        store = self.coordinator.run.store
        assert store is not None
        assert self._data.val is not None
        vector_to_parameters(store.parameters.clone(), self.module.parameters())
        losses, right, total = 0.0, 0, 0
        for batch in DataLoader(self._data.val, 32):
            logits, targets = self.module(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
            losses += float(functional.cross_entropy(logits, targets, reduction="sum"))
            right, total = right + int((logits.argmax(1) == targets).sum()), total + len(targets)
        return losses / total if losses == losses else float("inf"), right / total


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=40)
    parser.add_argument("--local-steps", type=int, default=2, help="steps in a round")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", nargs="*", default=list(RULES), help="the mean is run under two attacks besides")
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS))
    parser.add_argument("--splits", nargs="*", default=list(SPLITS), choices=list(SPLITS))
    parser.add_argument("--text", help="folder with *.py files; the standard library when not given")
    parser.add_argument("--cache", help="folder for the prepared text; the user's cache folder when not given")
    parser.add_argument("--held-out", type=float, default=0.02, help="fraction of the files kept for validation")
    parser.add_argument("--out", type=Path, help="file that keeps the runs")
    return parser.parse_args(words)


def text(args: argparse.Namespace) -> TextData:
    data = TextData(batch_size=args.batch_size, text=args.text, cache=args.cache, held_out=args.held_out, val_blocks=64)
    data.setup()
    return data


def cells(args: argparse.Namespace) -> Iterator[tuple[str, str | None, str]]:
    """Rule, attack and split of every run: first what all others are compared with, then attack by attack."""
    for split in args.splits:
        yield "mean", None, split
    for how, split in itertools.product(args.attacks, args.splits):
        for rule in (*(["mean"] if how in DEVASTATING else []), *args.rules):
            yield rule, how, split


def table(rows: dict[tuple[str, str | None, str], dict[str, Any]]) -> str:
    """Losses against the attack-free run of the same split, and points of accuracy lost."""
    lines = ["| split | attack | rule | loss | against the attack-free run | tokens foretold | points lost |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (rule, how, split), row in sorted(rows.items(), key=lambda item: item[0][2]):
        free = rows["mean", None, split]
        lines.append(
            f"| {split} | {how or 'none'} | {rule} | {row['val_loss']:.3f} "
            f"| {row['val_loss'] / free['val_loss'] - 1:+.1%} | {row['accuracy']:.1%} "
            f"| {100 * (free['accuracy'] - row['accuracy']):.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    data, kept = text(args), Kept(args.out)

    def run(rule: str, how: str | None, split: str) -> dict[str, float]:
        began = time.process_time()
        loss, accuracy = Fleet(rule, how, data, args, split).run(args.versions).held_out()
        return {"val_loss": loss, "accuracy": accuracy, "cpu_s": time.process_time() - began}

    names = ("versions", "local_steps", "batch_size", "lr", "warmup", "seed", "text", "held_out")
    setting = {name: getattr(args, name) for name in names}
    rows = {}
    for cell in cells(args):
        key = {**dict(zip(("rule", "attack", "split"), cell, strict=True)), **setting}
        rows[cell] = kept.row(key, lambda cell=cell: run(*cell))
    print(table(rows))


if __name__ == "__main__":
    main()
