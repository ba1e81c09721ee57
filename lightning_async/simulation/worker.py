"""A simulated worker: a user's training loop around the real engine, with virtual seconds in place of computing.

It joins, trains until the run ends or its time is over, sends what it has, and leaves; or it crashes. With churn it
comes back, as a new process under a new name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lightning_async.attacks import Seen, attack
from lightning_async.errors import AsyncWANError
from lightning_async.simulation.clock import Actor, Clock
from lightning_async.simulation.ends import Carrier, Line
from lightning_async.simulation.scenario import Place, Scenario
from lightning_async.simulation.tasks import Task, batches, leased_batches
from lightning_async.worker import Attachment, Engine, Identity
from lightning_async.worker.world import PUMP_S, World


class Town(Protocol):
    """What a worker needs of the simulation around it."""

    clock: Clock
    scenario: Scenario
    task: Task
    workers: list[Worker]

    @property
    def over(self) -> bool:
        """Whether the run has ended."""

    def dial(self, place: Place, carrier: Carrier) -> Line:
        """A new line to the server."""

    def gone(self) -> None:
        """A worker has gone for good."""


@dataclass
class Diary:
    """What a worker did, over all its lives. Seconds are virtual."""

    names: list[str] = field(default_factory=list)
    steps: int = 0
    computed_s: float = 0.0  # in steps
    trained_s: float = 0.0  # from the first parameters to the end: in steps, and in waits between them
    joined_s: float = 0.0  # from Hello to the first parameters
    sent_bytes: int = 0
    received_bytes: int = 0
    failures: list[str] = field(default_factory=list)


class Worker:
    """One worker of `town`. `begin` starts its first life."""

    def __init__(self, town: Town, place: Place, workers: int) -> None:
        self._town, self._clock, self.place = town, town.clock, place
        self.diary = Diary()
        self.last: Tensor | None = None  # its last update, as it computed it
        self.gone = False  # for good
        self._rng = np.random.default_rng([town.scenario.seed, place.number])
        how = place.group.attack
        self._attack = None if how is None else attack(how)
        self._memory: dict[str, Tensor] = {}
        data = town.task.share(place.number, workers)
        self._data = data if self._attack is None or self._attack.data is None else self._attack.data(data)
        self._leaving = self._through = False
        self._carrier: Carrier | None = None
        self._lines: list[Line] = []

    @property
    def hostile(self) -> bool:
        """Whether it attacks the run."""
        return self._attack is not None

    def begin(self) -> None:
        """Live from now on, as a new process."""
        group, now, churn = self.place.group, self._clock.now, self.place.group.churn
        lives = len(self.diary.names)
        self.diary.names.append(f"{self.place.name}.{lives}" if lives else self.place.name)
        self._leaving = False
        actor = self._clock.spawn(self.diary.names[-1], self._live)
        if churn is not None:
            crashes = self._rng.random() < churn.crash
            self._end_at(now + self._rng.exponential(churn.up_s), actor, crashes)
        if group.leaves_s is not None:
            self._end_at(group.leaves_s, actor, False)
        if group.crashes_s is not None:
            self._end_at(group.crashes_s, actor, True)

    def _end_at(self, time: float, actor: Actor, crashes: bool) -> None:
        self._clock.at(time, lambda: None if actor.ended else self._crash(actor) if crashes else self._leave())

    def _leave(self) -> None:
        self._leaving = True
        if self._carrier is not None:
            self._carrier.give_up()

    def _crash(self, actor: Actor) -> None:
        for line in self._lines:
            line.close()
        self._clock.kill(actor)

    def _live(self) -> None:
        try:
            self._train()
        except AsyncWANError as error:
            if not self._leaving:
                self.diary.failures.append(f"{self._clock.now:.1f} s: {error}")
        finally:
            for line in self._lines:
                self.diary.sent_bytes += line.traffic().sent_bytes
                self.diary.received_bytes += line.traffic().received_bytes
            self._lines = []
            self._return_or_go()

    def _return_or_go(self) -> None:
        churn, group = self.place.group.churn, self.place.group
        ends = [time for time in (group.leaves_s, group.crashes_s) if time is not None]
        if churn is None or self._town.over or self._through or any(time <= self._clock.now for time in ends):
            self.gone = True
            self._town.gone()
        else:
            self._clock.at(self._clock.now + self._rng.exponential(churn.down_s), self.begin)

    def _train(self) -> None:
        task, began = self._town.task, self._clock.now
        self._carrier = carrier = Carrier(self._clock)
        model = task.model()
        optimizer = task.optimizer(model)
        world = World(self._clock.read, lambda address: self._dial(carrier), lambda: carrier)
        identity = Identity(name=self.diary.names[-1], rank=self.place.number)
        engine = Engine("sim://server", model, [optimizer], identity, give_up=lambda: self._leaving, world=world)
        engine.tamper = self._tamper
        attachment = None
        try:
            engine.start()
            attachment = Attachment(engine)
            engine.arm()
            self.diary.joined_s += self._clock.now - began
            self._train_on(engine, model, optimizer, carrier)
            self._leaving = False  # what follows is waited for
            engine.align()
        finally:
            if attachment is not None:
                attachment.detach()
            engine.close()

    def _dial(self, carrier: Carrier) -> Line:
        self._lines.append(self._town.dial(self.place, carrier))
        return self._lines[-1]

    def _train_on(self, engine: Engine, model: nn.Module, optimizer: torch.optim.Optimizer, carrier: Carrier) -> None:
        task, began, diary = self._town.task, self._clock.now, self.diary
        before = diary.trained_s
        for batch, seconds in zip(self._feed(engine), self._steps_s(), strict=False):
            self._clock.sleep(seconds)
            engine.count_samples(task.batch_size)
            model.zero_grad()
            task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            carrier.look(self._rng.random() * PUMP_S)  # it looks up by itself that often, and may have room again
            diary.steps += 1
            diary.computed_s += seconds
            diary.trained_s = before + self._clock.now - began
            if engine.stop_asked or self._leaving:
                return
        self._through = True

    def _feed(self, engine: Engine) -> Iterator[object]:
        task, passes = self._town.task, self._town.scenario.passes
        if passes is None:
            return batches(self._data, task.batch_size, np.random.default_rng(self._rng.integers(2**63)))
        return leased_batches(engine, task.share(0, 1), task.batch_size, passes, lambda: self._leaving)

    def _steps_s(self) -> Iterator[float]:
        scenario = self._town.scenario
        while True:
            jitter = 1 + scenario.step_jitter * self._rng.uniform(-1.0, 1.0)
            yield scenario.step_s * jitter / self.place.speed

    def _tamper(self, update: Tensor) -> Tensor:
        """What is sent for `update`: for honest workers the same."""
        self.last = update
        if self._attack is None:
            return update
        others = self._town.workers
        honest = [worker.last for worker in others if not worker.hostile and worker.last is not None]
        seen = Seen(honest, len(others), sum(worker.hostile for worker in others), seed=int(self._rng.integers(2**31)))
        sent, self._memory = self._attack.submit(update, seen, self._memory)
        return sent
