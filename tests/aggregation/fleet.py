"""Asynchronous training on digits in virtual time: the real coordinator and codecs, workers of unequal speed.

Every worker computes a round of local steps from the newest published parameters that it has, submits it when its
time has come, pulls, and goes on. Hostile ones submit `FAST` times as often as workers of speed 1: what their attack
makes of one round from the parameters that they have, computed once for these. The same seed gives the same run.
"""

from __future__ import annotations

import heapq
import itertools
import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from digits import BATCH, F, Floats, N, Share, accuracy, data, gradients, poisoned, split, start
from torch import Tensor

from lightning_async.attacks import Attack, Seen, attack
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
LAST = 20  # versions
D = start().numel()
LAYOUT = read_manifest([["all", [D], "float32", "parameter"]])
TRUSTED = 400  # images that the server's owner has, for zeno


def trusted_round(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an honest worker with the owner's images would send: a round of full-batch momentum steps."""
    local, share = tensors["all"].numpy().copy(), data()[0]
    trusted = share.images[None, :TRUSTED].numpy(), share.labels[None, :TRUSTED].numpy()
    momentum = gradients(local, *trusted)[0]
    for _ in range(STEPS):
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradients(local, *trusted)[0]
        local -= RATE * momentum
    return {"all": tensors["all"] - torch.from_numpy(local)}


@dataclass
class Worker:
    """One worker: its data, its clock, and what it has of the run."""

    name: str
    share: Share
    speed: float
    attack: Attack | None
    codec: Codec
    state: State
    momentum: Floats = field(default_factory=lambda: np.zeros(D, np.float32))
    base: Tensor = field(default_factory=start)
    version: int = 0
    seq: int = 0
    last: Tensor | None = None
    made_at: int = -1
    memory: dict[str, Tensor] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def round(self, rng: np.random.Generator) -> Tensor:
        """The update of a few momentum steps from the parameters at hand."""
        local = self.base.numpy().copy()
        rows = rng.integers(0, len(self.share.labels), (STEPS, 1, BATCH))
        for images, labels in zip(self.share.images.numpy()[rows], self.share.labels.numpy()[rows], strict=True):
            self.momentum *= MOMENTUM
            self.momentum += (1 - MOMENTUM) * gradients(local, images, labels)[0]
            local -= RATE * self.momentum
        return self.base - torch.from_numpy(local)


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
        act = attack(how) if how else None
        speeds = [*itertools.islice(itertools.cycle(SPEEDS), len(honest)), *[FAST] * len(hostile)]
        self.workers = [
            Worker(f"w{i}", share, speed, act if i >= len(honest) else None, made, made.init(D))
            for i, (share, speed) in enumerate(zip([*honest, *hostile], speeds, strict=True))
        ]
        self.honest, self.hostile = self.workers[: len(honest)], self.workers[len(honest) :]
        self.events: list[events.Event] = []
        self._ids, self._rng, self.now = itertools.count(1), np.random.default_rng(100 + seed), 0.0
        self.diverged, self.last = False, list[float]()
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
        """Go on until the run is at this version, or training has diverged; accuracies of the last ones are kept."""
        due = [(self.now + self._lasts(worker), i) for i, worker in enumerate(self.workers)]
        heapq.heapify(due)
        while self.coordinator.run.version < versions and not self.diverged:
            self.now, i = heapq.heappop(due)
            before = self.coordinator.run.version
            self._turn(self.workers[i])
            if self.coordinator.run.version > max(before, versions - LAST):
                self.last.append(accuracy(self.parameters))
            heapq.heappush(due, (self.now + self._lasts(self.workers[i]), i))
        return self

    def _lasts(self, worker: Worker) -> float:
        return float(self._rng.uniform(0.9, 1.1)) / worker.speed

    def _turn(self, worker: Worker) -> None:
        sent = self._sends(worker)
        if not bool(torch.isfinite(sent).all()):
            self.diverged = True
            return
        payload, worker.state = worker.codec.encode(sent, worker.state)
        worker.seq += 1
        push = m.Push(seq=worker.seq, base=worker.version, digest=LAYOUT.digest, samples=STEPS * BATCH, steps=STEPS)
        receipt = self.say(worker, push, (bytes(payload), b"")).message
        if not receipt.accepted:
            worker.refused.append(receipt.reason)
            if receipt.reason == "not_finite" and worker.attack is None:
                self.diverged = True
        if receipt.version != worker.version:
            self._pull(worker)

    def _sends(self, worker: Worker) -> Tensor:
        """What it submits now; hostile ones know the last updates of the honest."""
        if worker.attack is None:
            worker.last = worker.round(self._rng)
        elif worker.last is None or worker.made_at != worker.version:
            known = [other.last for other in self.honest if other.last is not None]
            seen = Seen(known, N, F, seed=1000 * worker.version + self.workers.index(worker))
            worker.last, worker.memory = worker.attack.submit(worker.round(self._rng), seen, worker.memory)
            worker.made_at = worker.version
        return worker.last

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
        """The mean over the last versions: at a constant rate single ones scatter by one to two points."""
        return 0.0 if self.diverged or not self.last else statistics.mean(self.last[-LAST:])

    def score(self, worker: Worker) -> float:
        member = self.coordinator.run.members.named(worker.name)
        assert member is not None
        return member.reputation.score.value or 0.0
