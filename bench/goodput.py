"""Goodput: how much of what dying workers compute ends up in the model of a server that dies as well.

`python -m bench goodput`. Eight workers, one after the other in each of eight places, and one server at a time with a
`state_dir`; every death is a SIGKILL. Once there is a version, a worker's life ends after an exponential time with a
mean of two rounds, joining included, and the next one begins at once; the server is killed after each SERVER_LIVES
versions and restarted at once. All are processes forked from one that has imported everything, so that a life costs
milliseconds, as the rounds of one second are short: of rounds of minutes, exchanges, outages and joins are less.

A token adds one to a number of the model, so the parameters say how many are in them; at the end the server is killed
once more and they are read from its folder. A round counts when its last step begins; what a worker had done of a
round when it was killed is lost by the nature of rounds, and `of_all_steps` counts that too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_async.config import RunConfig
from lightning_async.server import Keeper, Service, recovery
from lightning_async.server.history import read_run
from lightning_async.transport import listen
from lightning_async.worker import Attachment, Engine, Identity

WORKERS = 8
STEPS, STEP_S, TOKENS = 20, 0.05, 64  # of a round; of a step
ROUNDS = 2.0  # mean of a worker's life
SERVER_LIVES, VERSIONS = 50, 600
D = 10_000
CONFIG = RunConfig(local_steps=STEPS, weight="constant", workers=WORKERS)
END_S = 120.0
FIRST_S = 60.0
PORT, VERSION, BORN, OVER, DONE = range(5)  # cells; then two for each place: steps, and those of rounds that ended


def rows() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench.goodput", folder]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    yield {
        "bench": f"goodput: tokens of whole rounds that end up applied, {WORKERS} workers and their server dying",
        "ours": found["applied"], "reference": found["of_rounds"], "unit": "tokens",
        "ratio": found["applied"] / found["of_rounds"], "floor": 0.95,
        "of_all_steps": found["applied"] / found["computed"], **found,
    }  # fmt: skip


def _serve(folder: Path, cells: np.ndarray[Any, Any], parent: int) -> None:
    recorder = recovery.recorded(CONFIG, "goodput", folder, time.monotonic(), run_id="one")
    keeper = Keeper(folder, commits=recorder.commits)
    listener = listen(f"tcp://127.0.0.1:{cells[PORT]}")
    service = Service(recorder.coordinator, listener, keeper=keeper, recorder=recorder)
    cells[PORT], cells[BORN] = int(service.address.rpartition(":")[2]), os.getpid()
    while os.getppid() == parent:
        service.turn()
        cells[VERSION] = recorder.coordinator.run.version


def _model() -> tuple[nn.Linear, torch.optim.Optimizer]:
    model = nn.Linear(D, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def _work(place: int, life: int, cells: np.ndarray[Any, Any], parent: int) -> None:
    model, optimizer = _model()
    draw = np.random.default_rng([place, life])
    gone = lambda: os.getppid() != parent  # noqa: E731
    address, name = f"tcp://127.0.0.1:{cells[PORT]}", f"worker-{place}.{life}"
    engine = Engine(address, model, [optimizer], Identity(name=name, rank=place), give_up=gone)
    engine.start()
    attachment, steps = Attachment(engine), 0
    engine.arm()
    while not (cells[OVER] and steps % STEPS == 0):
        time.sleep(STEP_S)
        drawn = np.bincount(draw.integers(0, D, TOKENS), minlength=D)
        model.weight.grad = -torch.from_numpy(drawn).float().reshape(1, D)
        steps += 1
        cells[DONE + 2 * place] += 1
        cells[DONE + 2 * place + 1] += STEPS if steps % STEPS == 0 else 0
        engine.count_samples(TOKENS)
        optimizer.step()
    engine.flush()
    attachment.detach()
    engine.close(goodbye_s=FIRST_S)


@dataclass
class Deaths:
    """The run from outside: who lives, until when, and how many have died."""

    folder: Path
    cells: np.ndarray[Any, Any] = field(
        default_factory=lambda: np.frombuffer(mmap.mmap(-1, 8 * (DONE + 2 * WORKERS)), dtype=np.int64)
    )
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    workers: dict[int, tuple[int, float]] = field(default_factory=dict)  # place -> pid, when it dies
    server: int = 0
    of_workers: int = 0
    of_servers: int = 0
    outages_s: list[float] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """All of it. Raises RuntimeError when anybody ends who was not killed."""
        began = time.monotonic()
        try:
            self._serve()
            while self.cells[VERSION] < VERSIONS:
                self._look()
                time.sleep(0.005)
            self._end()
        finally:
            for pid in [self.server, *(pid for pid, _ in self.workers.values())]:
                _kill(pid)
        return {**self._counted(), "seconds": time.monotonic() - began}

    def _look(self) -> None:
        if self.cells[VERSION] >= SERVER_LIVES * (self.of_servers + 1):
            _kill(self.server)
            self.of_servers += 1
            self._serve()
        _check(self.server)
        for place in range(WORKERS):
            pid, dies_at = self.workers.get(place, (0, 0.0))
            if pid and (time.monotonic() < dies_at or self.cells[VERSION] < 1):
                _check(pid)
                continue
            if pid:
                _kill(pid)
                self.of_workers += 1
            lasts_s = self.chance.expovariate(1 / (ROUNDS * STEPS * STEP_S))
            pid = _fork(partial(_work, place, self.of_workers, self.cells))
            self.workers[place] = (pid, time.monotonic() + lasts_s)

    def _serve(self) -> None:
        began = time.monotonic()
        self.server = _fork(partial(_serve, self.folder, self.cells))
        while self.cells[BORN] != self.server and time.monotonic() < began + FIRST_S:
            _check(self.server)
            time.sleep(0.001)
        self.outages_s.append(time.monotonic() - began)

    def _end(self) -> None:
        """Nobody dies any more; each worker ends the round that it is at."""
        self.cells[OVER], ends = 1, time.monotonic() + END_S
        while self.workers and time.monotonic() < ends:
            for place, (pid, _) in list(self.workers.items()):
                if _check(pid, may_end=True):
                    del self.workers[place]
            time.sleep(0.01)
        if self.workers:
            raise RuntimeError(f"{len(self.workers)} workers are not through after {END_S} s")

    def _counted(self) -> dict[str, Any]:
        store = read_run(self.folder).run.store
        assert store is not None
        computed, whole = (int(self.cells[DONE + i :: 2].sum()) for i in (0, 1))
        return {
            "applied": round(float(store.published.double().sum())), "of_rounds": whole * TOKENS,
            "computed": computed * TOKENS, "rounds": whole // STEPS, "versions": int(self.cells[VERSION]),
            "worker_deaths": self.of_workers, "server_deaths": self.of_servers,
            "deaths_a_round": self.of_workers * STEPS / computed,
            "outage_s": sum(self.outages_s[1:]) / max(1, len(self.outages_s) - 1),
        }  # fmt: skip


def _fork(life: Callable[[int], None]) -> int:
    """The pid of a process that leads this life and ends."""
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        code = 1
        try:
            life(parent)
            code = 0
        except BaseException:
            logging.exception("it ended by itself")
        finally:
            os._exit(code)
    return pid


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _check(pid: int, may_end: bool = False) -> bool:
    """Whether it has ended. Raises RuntimeError where it should not have."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended and (status or not may_end):
        raise RuntimeError(f"process {pid} has ended by itself with status {status}; its log says why")
    return bool(ended)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    _model()[1].step()  # imports much that torch puts off
    print(json.dumps(Deaths(Path(sys.argv[1])).run()))
