"""`simulate(scenario)`: the real coordinator, service, codecs, engines and links, in virtual time, over a virtual net.

What is simulated: the clock, the lines, and how long a step takes. Everything that decides anything is the code that
runs on real machines. The same scenario and seed give the same result, bit for bit, on the same machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from lightning_async.errors import AsyncWANError
from lightning_async.layout import shared_tensors, unflatten
from lightning_async.links.link import MEGABIT, Link
from lightning_async.links.pipe import Pipe
from lightning_async.server import Coordinator, Service
from lightning_async.server.rules import settled
from lightning_async.server.service import TICK_S
from lightning_async.simulation.clock import Clock
from lightning_async.simulation.ends import Carrier, Gate, Line
from lightning_async.simulation.network import Path
from lightning_async.simulation.result import Point, Result, result_of
from lightning_async.simulation.scenario import Place, Scenario
from lightning_async.simulation.tasks import Task
from lightning_async.simulation.tasks import task as task_named
from lightning_async.simulation.worker import Worker
from lightning_async.telemetry import Sink, events


class Simulation:
    """One scenario, with everything that is in it. `run` lets it happen, once.

    Args:
        scenario: what happens.
        task: what is trained, in place of the scenario's own.
        sinks: told every event of the server.
    """

    def __init__(self, scenario: Scenario, task: Task | None = None, sinks: Iterable[Sink] = ()) -> None:
        self.scenario, self.task = scenario, task_named(scenario.task) if task is None else task
        places = list(scenario.places())
        config = replace(scenario.run, epochs=scenario.run.epochs or scenario.passes)
        config = settled(config if config.workers > 1 else replace(config, workers=len(places)), far=True)
        self.clock = Clock()
        self.coordinator = Coordinator(config, scenario.name)
        self._watch = Watch(self)
        self._gate = Gate(self.clock, lambda: self._service.turn())
        self._service = Service(self.coordinator, self._gate, [self._watch, *sinks], self.clock.read)
        self._rng = np.random.default_rng([scenario.seed, 2**32])
        self._server = self._pipes(scenario.server)
        self._sites = {place.group.name: self._site(place) for place in places}
        self._own = {place.name: self._pipes(place.group.link) for place in places}
        self.workers = [Worker(self, place, len(places)) for place in places]

    def _pipes(self, link: Link) -> tuple[Pipe, Pipe]:
        """(up, down) of one end's own line; a brownout is one of both directions."""
        phase = 0.0 if link.brownout is None else float(self._rng.uniform(0.0, link.brownout.every_s))
        out = link.brownout
        return Pipe(link.bytes_per_s("up"), out, phase), Pipe(link.bytes_per_s("down"), out, phase)

    def _site(self, place: Place) -> tuple[list[Pipe], list[Pipe]]:
        trunk = place.group.trunk
        if trunk is None:
            return [], []
        return [Pipe(trunk.up_mbps * MEGABIT)], [Pipe(trunk.down_mbps * MEGABIT)]

    def dial(self, place: Place, carrier: Carrier) -> Line:
        """A new line of `place` to the server."""
        (up, down), (site_up, site_down) = self._own[place.name], self._sites[place.group.name]
        server_up, server_down = self._server
        link = place.group.link
        return Line(
            self.clock,
            self._gate,
            Path([up, *site_up, server_down], link, "up", self._rng),
            Path([down, *site_down, server_up], link, "down", self._rng),
            carrier,
        )

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return bool(self.coordinator.run.ended)

    def gone(self) -> None:
        """A worker has gone for good: without workers nothing happens any more."""
        if all(worker.gone for worker in self.workers):
            self.clock.stop()

    def run(self) -> Result:
        """Let it happen. Raises what went wrong in the server or in a worker's own code."""
        for worker in self.workers:
            self.clock.at(worker.place.group.joins_s, worker.begin)
        self._tick()
        try:
            self.clock.run(self.scenario.seconds or float("inf"))
            self._watch.evaluate()
        finally:
            ended = self.clock.now
            self.clock.close()
        if self._service.failures or self._service.damaged:
            raise AsyncWANError(f"the server failed {self._service.failures} times; its log says why. Please report it")
        return result_of(self, ended, self._watch.curve)

    def _tick(self) -> None:
        self._service.turn()
        self.clock.at(self.clock.now + TICK_S, self._tick)


class Watch:
    """A sink that has the published parameters evaluated now and then."""

    def __init__(self, town: Simulation) -> None:
        self._town = town
        self._model = town.task.model()
        self._shared = shared_tensors(self._model)
        self._next = 0.0
        self.curve: list[Point] = []

    def write(self, event: events.Event) -> None:
        if not isinstance(event, (events.Initialised, events.Stepped)):
            return
        scenario, run = self._town.scenario, self._town.coordinator.run
        whole = run.config.total_steps
        at, end = (run.now, scenario.seconds or 1.0) if whole is None else (float(run.steps_total), float(whole))
        if at >= self._next:
            self._next = at + end / scenario.evaluations
            self._town.clock.at(self._town.clock.now, self.evaluate)  # not inside of the server's own work

    def evaluate(self) -> None:
        """Add a point to the curve."""
        run = self._town.coordinator.run
        if run.store is None or (self.curve and self.curve[-1].version == run.version):
            return
        unflatten(run.store.published, self._shared.layout.parameters, self._shared.parameters)
        unflatten(run.store.buffers, self._shared.layout.buffers, self._shared.buffers)
        self._model.eval()
        with torch.no_grad():
            loss = self._town.task.evaluate(self._model)
        self.curve.append(Point(self._town.clock.now, run.steps_total, run.version, loss))

    def close(self) -> None: ...


def simulate(scenario: Scenario, task: Task | None = None) -> Result:
    """What comes of `scenario`; `task` in place of the scenario's own. Deterministic. Raises ConfigError."""
    return Simulation(scenario, task).run()
