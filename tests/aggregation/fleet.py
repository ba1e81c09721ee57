"""Asynchronous training on digits in virtual time: the real coordinator and codecs, workers of unequal speed.

Every worker computes a round of local steps from the newest published parameters that it has, submits it when its
time has come, pulls, and goes on; hostile ones submit what their attack makes of it, `FAST` times as often as the
workers of speed 1. The same seed gives the same run.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from digits import BATCH, F, N, Share, accuracy, data, gradients, poisoned, split, start
from torch import Tensor

from lightning_async.attacks import Seen, attack
from lightning_async.codecs import Codec, State, download_codec, upload_codec
from lightning_async.config import RunConfig
from lightning_async.layout import read_manifest
from lightning_async.server import Coordinator
from lightning_async.server.actions import Emit, Received, Send
from lightning_async.server.private import Private
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, Frame

SPEEDS = (3.0, 1.0, 0.3)
FAST = 10.0
STEPS, RATE, MOMENTUM = 4, 1.0, 0.9
D = start().numel()
LAYOUT = read_manifest([["all", [D], "float32", "parameter"]])
TRUSTED = 400  # images that the server's owner has, for zeno


def trusted_round(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an honest worker with the owner's images would send: a round of full-batch momentum steps."""
    local, share = tensors["all"].clone(), data()[0]
    momentum = gradients(local, share.images[None, :TRUSTED], share.labels[None, :TRUSTED])[0]
    for _ in range(STEPS):
        gradient = gradients(local, share.images[None, :TRUSTED], share.labels[None, :TRUSTED])[0]
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        local -= RATE * momentum
    return {"all": tensors["all"] - local}


@dataclass
class Worker:
    """One worker: its data, its clock, and what it has of the run."""

    name: str
    share: Share
    speed: float
    how: str | None
    codec: Codec
    state: State
    momentum: Tensor = field(default_factory=lambda: torch.zeros(D))
    base: Tensor = field(default_factory=start)
    version: int = 0
    seq: int = 0
    last: Tensor | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def round(self, rng: np.random.Generator) -> Tensor:
        """The update of a few momentum steps from the parameters at hand."""
        local = self.base.clone()
        for _ in range(STEPS):
            rows = torch.from_numpy(rng.integers(0, len(self.share.labels), BATCH))
            gradient = gradients(local, self.share.images[rows][None], self.share.labels[rows][None])[0]
            self.momentum = MOMENTUM * self.momentum + (1 - MOMENTUM) * gradient
            local -= RATE * self.momentum
        return self.base - local


class Fleet:
    """n workers, the last f of them under the attack `how` (None: n - f workers, all honest)."""

    def __init__(self, rule: str, how: str | None, concentration: float | None, seed: int = 0, **config: Any) -> None:
        honest, hostile = split(N - F, concentration, seed), [poisoned(data()[0], how)] * F if how else []
        workers = len(honest) + len(hostile)
        config = {"aggregation": rule, "workers": workers, "local_steps": STEPS, "outer": "sgd(lr=1.0)"} | config
        self.coordinator = Coordinator(
            RunConfig(**{"weight": "constant", **config}), "fleet", Private(secret=5, validation=trusted_round)
        )
        made = upload_codec(self.coordinator.run.config.compression)
        self.download = download_codec(self.coordinator.run.config.download_compression, made)
        speeds = [*itertools.islice(itertools.cycle(SPEEDS), len(honest)), *[FAST] * len(hostile)]
        self.workers = [
            Worker(f"w{i}", share, speed, how if i >= len(honest) else None, made, made.init(D))
            for i, (share, speed) in enumerate(zip([*honest, *hostile], speeds, strict=True))
        ]
        self.honest, self.hostile = self.workers[: len(honest)], self.workers[len(honest) :]
        self.events: list[events.Event] = []
        self._ids, self._rng, self.now = itertools.count(1), np.random.default_rng(100 + seed), 0.0
        self.diverged = False
        for rank, worker in enumerate(self.workers):
            tensors = [["all", [D], "float32", "parameter"]]
            hello = m.Hello(worker=worker.name, instance="1", tensors=tensors, digest=LAYOUT.digest, rank=rank)
            self.say(worker, hello)
        self.say(self.workers[0], m.Init(digest=LAYOUT.digest), (start().numpy().tobytes(), b""))

    @property
    def parameters(self) -> Tensor:
        store = self.coordinator.run.store
        assert store is not None
        return store.parameters

    def say(self, worker: Worker, message: m.Message, payload: tuple[Frame, ...] = ()) -> Envelope:
        """The answer to `message`."""
        request = next(self._ids)
        envelope = Envelope(request, message, payload)
        actions = self.coordinator.handle(Received(worker.name.encode(), envelope), self.now)
        self.events += [action.event for action in actions if isinstance(action, Emit)]
        return next(a.envelope for a in actions if isinstance(a, Send) and a.envelope.id == request)

    def run(self, versions: int) -> Fleet:
        """Go on until the run is at this version, or training has diverged."""
        due = [(self.now + self._lasts(worker), i) for i, worker in enumerate(self.workers)]
        heapq.heapify(due)
        while self.coordinator.run.version < versions and not self.diverged:
            self.now, i = heapq.heappop(due)
            self._turn(self.workers[i])
            heapq.heappush(due, (self.now + self._lasts(self.workers[i]), i))
        return self

    def _lasts(self, worker: Worker) -> float:
        return float(self._rng.uniform(0.9, 1.1)) / worker.speed

    def _turn(self, worker: Worker) -> None:
        sent = worker.last = worker.round(self._rng)
        if not bool(torch.isfinite(sent).all()):
            self.diverged = True
            return
        if worker.how is not None:
            known = [other.last for other in self.honest if other.last is not None]
            seen = Seen(known, N, F, seed=worker.seq)
            sent, worker.memory = attack(worker.how).submit(sent, seen, worker.memory)
        payload, worker.state = worker.codec.encode(sent, worker.state)
        worker.seq += 1
        push = m.Push(seq=worker.seq, base=worker.version, digest=LAYOUT.digest, samples=STEPS * BATCH, steps=STEPS)
        receipt = self.say(worker, push, (bytes(payload), b"")).message
        if not receipt.accepted:
            worker.refused.append(receipt.reason)
            if receipt.reason == "not_finite" and worker.how is None:
                self.diverged = True
        self._pull(worker)

    def _pull(self, worker: Worker) -> None:
        answer = self.say(worker, m.Pull(have=worker.version))
        params, parts = answer.message, answer.payload[:-1]
        if params.form == "snapshot":
            worker.base = torch.frombuffer(bytearray(parts[0]), dtype=torch.float32)
        elif params.form == "deltas":
            for delta in parts:
                worker.base = worker.base + self.download.decode(delta, D)
        worker.version = params.version

    def accuracy(self) -> float:
        return accuracy(self.parameters)

    def score(self, worker: Worker) -> float:
        member = self.coordinator.run.members.named(worker.name)
        assert member is not None
        return member.reputation.score.value or 0.0


def compare(rule: str, how: str | None, kind: str, quorum: int | str | None, seed: int) -> tuple[float, float]:
    """Accuracy of the attack-free mean, and of `rule` under `how`, with this seed of shares and batches."""
    concentration = None if kind == "iid" else 0.3
    free = Fleet("mean", None, concentration, seed, quorum="all" if quorum else 6).run(100)
    given = quorum or (8 if rule == "mean" else None)
    shown = Fleet(rule, how, concentration, seed, **({"quorum": given} if given else {}))
    shown.run(800 if shown.coordinator.run.config.quorum == 1 else 100)
    print(f"seed {seed}: scores", {worker.name: round(shown.score(worker), 2) for worker in shown.workers})
    return free.accuracy(), shown.accuracy()


if __name__ == "__main__":  # python tests/aggregation/fleet.py "multi_krum(f=2)" "alie()" iid --seeds 3
    torch.set_num_threads(1)
    words = argparse.ArgumentParser(description="accuracy under an attack, and what it costs")
    words.add_argument("rule")
    words.add_argument("attack", help='"" for none')
    words.add_argument("split", choices=("iid", "dirichlet"))
    words.add_argument("--quorum", choices=("all",), help="in place of the rule's own, 8 of 11")
    words.add_argument("--seeds", type=int, default=1)
    args = words.parse_args()
    runs = [compare(args.rule, args.attack or None, args.split, args.quorum, seed) for seed in range(args.seeds)]
    lost = [100 * (free - reached) for free, reached in runs]
    print(f"{args.rule} under {args.attack or 'nothing'}, {args.split}, quorum {args.quorum or 'as the rule has it'}:")
    print("accuracy", [round(reached, 3) for _, reached in runs], "attack-free", [round(free, 3) for free, _ in runs])
    print(f"points lost {[round(x, 1) for x in lost]}: median {statistics.median(lost):.1f}, worst {max(lost):.1f}")
