"""A worker's part in a run, as data: who it is, and what it has trained since its last update."""

from __future__ import annotations

import math
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from lightning_async.layout import Layout, Shared
from lightning_async.machine import machine
from lightning_async.scheduling import Range
from lightning_async.transport.base import Connection
from lightning_async.transport.keys import Key
from lightning_async.wire.messages import Hello, Push

Unit: TypeAlias = tuple[str, Range]  # stream, and leased positions of it


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who this worker is. `group` and `rank` are those of its launch: processes that one script started; `key` is for
    a server with keys, and gives the name."""

    name: str = ""
    group: str = ""
    rank: int = 0
    key: Key | None = None

    @property
    def full_name(self) -> str:
        """The key's name; without a key the name given, or one that no other process has. Raises ConfigError when
        another name was given than the key's."""
        if self.key is not None:
            return self.key.worker_name(self.name, self.rank)
        return self.name or f"{socket.gethostname()}-{self.rank}-{uuid.uuid4().hex[:6]}"

    def dial(self, connect: Callable[..., Connection], address: str) -> Connection:
        """A connection to `address`, with the key where there is one."""
        return connect(address) if self.key is None else connect(address, key=self.key)

    def hello(self, name: str, layout: Layout, claims: Mapping[str, str]) -> Hello:
        """The greeting of a new process called `name` that trains `layout`."""
        return Hello(
            worker=name,
            instance=uuid.uuid4().hex,
            tensors=layout.manifest,
            digest=layout.digest,
            claims=dict(claims),
            group=self.group,
            rank=self.rank,
            host=machine(),
        )


@dataclass
class Round:
    """What has been trained since the last update."""

    began: float  # on the worker's clock
    steps: dict[int, int] = field(default_factory=dict)  # optimizer -> its steps
    samples: int = 0
    again: int = 0  # steps of refused updates that go with this one
    units: list[Unit] = field(default_factory=list)  # leased samples that an optimizer has stepped on
    losses: int = 0  # that were added up in `loss`
    loss: torch.Tensor | None = None  # on the device, so that nobody waits for it before the round is sent
    base: int | None = None  # the first version put under it: what newer ones change later does not make it younger

    def stepped(self, optimizer: int, units: Sequence[Unit]) -> None:
        """Optimizer number `optimizer` has made a step; `units` are the leased samples since the last one."""
        self.steps[optimizer] = self.steps.get(optimizer, 0) + 1
        self.units += units

    def regain(self, steps: int, samples: int, units: Sequence[Unit] = ()) -> None:
        """A refused update's progress goes with this round, which must not become shorter for it."""
        self.again += steps
        self.samples += samples
        self.units += units

    def add_loss(self, loss: torch.Tensor, times: int) -> None:
        """`times` the loss that is being trained on, one number."""
        if self.loss is None:
            self.loss = torch.zeros((), dtype=torch.float32, device=loss.device)
        self.loss.add_(loss.detach().reshape(()), alpha=times)
        self.losses += 1

    @property
    def mean_loss(self) -> float | None:
        """The mean of the losses; None without any, or when it is not finite."""
        mean = math.nan if self.loss is None else float(self.loss) / self.losses
        return mean if math.isfinite(mean) else None

    def push(self, now: float, version: int, claim: tuple[int, int], **rest: Any) -> Push:
        """What is told of this round, which ends `now`, with `version` held; its steps are held between the two numbers
        of `claim`."""
        return Push(
            base=version if self.base is None else self.base,
            samples=max(1, self.samples),
            steps=min(max(claim[0], self.length + self.again), claim[1]),
            round_s=now - self.began,
            loss=self.mean_loss,
            **rest,
        )

    @property
    def length(self) -> int:
        """Steps of the optimizer that has stepped most."""
        return max(self.steps.values(), default=0)


def gradients(shared: Shared, optimizer: torch.optim.Optimizer) -> tuple[list[int], torch.Tensor]:
    """Which of the shared tensors have a gradient for `optimizer`, and these one after the other, float32."""
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found = {i: p.grad for i, p in enumerate(shared.parameters) if p.grad is not None and id(p) in mine}
    parts = [gradient.detach().to(torch.float32).reshape(-1) for gradient in found.values()]
    return list(found), torch.cat(parts) if parts else torch.empty(0)
