"""Workers that die, stand still and lose their line: `python crowd.py '{"server": "tcp://...", ...}'`.

They are forked from this program, which does to them what it has drawn. Sample i adds one to weight i, as in
counting.py. Beside them guests join, take parameters and leases, and hang up without a word. It says "warm" after a
part of all that and "quiet" after the rest; each time it goes on when it is given a line. Until it is quiet the workers
may take only so many steps as leave the run unfinished; it ends with its input.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_async.errors import RefusedError
from lightning_async.layout import shared_tensors
from lightning_async.simulation.tasks import leased_batches
from lightning_async.transport import Connection, connect
from lightning_async.transport.base import Frame, Traffic
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack
from lightning_async.worker import Attachment, Engine, Identity
from lightning_async.worker.world import World

# server, samples, batch, passes, steps, places, deeds, guests, warm, seed
GIVEN: dict[str, Any] = json.loads(sys.argv[1])
STEPS, ALLOWED, GUESTS, INVITED, LOST, TORN = range(6)  # cells; TORN + place: that its line is to break
LONGEST_STOP_S = 5.0  # some longer than the run's patience
cells = np.frombuffer(mmap.mmap(-1, 8 * (TORN + GIVEN["places"])), dtype=np.int64)


class Line(Connection):
    """A connection that breaks, when told to, just before the receipt of an update: it is lost, and so is the line.

    From then on it is another line, to the server a stranger's.
    """

    def __init__(self, address: str, place: int) -> None:
        self._address, self._place, self._lock = address, place, threading.Lock()
        self._inner, self._pushed = connect(address), False

    def send(self, frames: Sequence[Frame]) -> None:
        self._pushed = self._pushed or sum(map(len, frames)) > 2 * GIVEN["samples"]
        self._inner.send(frames)

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        frames = self._inner.receive(timeout_s)
        if frames is None or not self._pushed:
            return frames
        self._pushed = False
        if not cells[TORN + self._place]:
            return frames
        cells[TORN + self._place] = 0
        cells[LOST] += 1
        with self._lock:
            self._inner.close()
            self._inner = connect(self._address)
        return None

    def wake(self) -> None:
        with self._lock:
            self._inner.wake()

    def traffic(self) -> Traffic:
        return self._inner.traffic()

    def close(self) -> None:
        self._inner.close()


class Places:
    def __len__(self) -> int:
        return int(GIVEN["samples"])

    def __getitem__(self, index: int) -> int:
        return index


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(GIVEN["samples"], 1, bias=False)
    nn.init.zeros_(model.weight)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def work(place: int, life: int) -> None:
    model, optimizer = build()
    world = World(connect=lambda address: Line(address, place))
    engine = Engine(GIVEN["server"], model, [optimizer], Identity(name=f"{place}.{life}", rank=place), world=world)
    with contextlib.suppress(RefusedError):  # it is too late: the run is over
        engine.start()
        attachment = Attachment(engine)
        engine.arm()
        for batch in leased_batches(engine, Places(), GIVEN["batch"], GIVEN["passes"], lambda: False):
            while cells[STEPS] >= cells[ALLOWED] and not engine.stop_asked:
                time.sleep(0.01)
            if engine.stop_asked:
                break
            cells[STEPS] += 1
            engine.count_samples(len(batch))
            model.weight.grad = -torch.bincount(batch, minlength=GIVEN["samples"]).float().reshape(1, -1)
            optimizer.step()
        engine.flush()
        attachment.detach()
    engine.close()


def visit() -> None:
    layout = shared_tensors(build()[0]).layout
    while True:
        if cells[GUESTS] >= cells[INVITED]:
            time.sleep(0.01)
            continue
        line, name = connect(GIVEN["server"]), f"guest-{cells[GUESTS]}"
        requests: list[m.Request] = [
            m.Hello(worker=name, instance="1", tensors=layout.manifest, digest=layout.digest, rank=9), m.Pull(),
            m.Lease(stream="train", length=GIVEN["samples"], count=50, number=1, batch=50),
        ]  # fmt: skip
        for number, request in enumerate(requests, 1):
            line.send(pack(Envelope(number, request)))
            if line.receive(120.0) is None:
                raise TimeoutError(f"no answer to {request}")
        line.close()
        cells[GUESTS] += 1


def fork(life: Callable[[], None]) -> int:
    parent, pid = os.getpid(), os.fork()
    if pid:
        return pid
    threading.Thread(target=lambda: end_with(parent), daemon=True).start()
    try:
        life()
        os._exit(0)
    except BaseException:
        logging.exception("a life has ended by itself")
    finally:
        os._exit(1)


def end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


class Crowd:
    """What is done to them."""

    def __init__(self) -> None:
        self.chance, self.done, self.lives = random.Random(GIVEN["seed"]), Counter[str](), 0
        self.deeds = [self.kill, self.stop, self.tear] * (GIVEN["deeds"] // 3)
        self.chance.shuffle(self.deeds)
        self.pids = [self.begin(place) for place in range(GIVEN["places"])]
        self.stopped: dict[int, float] = {}  # pid -> until when
        self.guests = 0

    def begin(self, place: int) -> int:
        self.lives += 1
        return fork(partial(work, place, self.lives))

    def kill(self, place: int) -> None:
        os.kill(self.pids[place], signal.SIGKILL)
        os.waitpid(self.pids[place], 0)
        self.stopped.pop(self.pids[place], None)
        self.pids[place] = self.begin(place)

    def stop(self, place: int) -> None:
        os.kill(self.pids[place], signal.SIGSTOP)
        self.stopped[self.pids[place]] = time.monotonic() + self.chance.uniform(0.1, LONGEST_STOP_S)

    def tear(self, place: int) -> None:
        cells[TORN + place] = 1

    def go_on(self, all_of_them: bool = False) -> None:
        for pid, until in list(self.stopped.items()):
            if all_of_them or time.monotonic() > until:
                os.kill(pid, signal.SIGCONT)
                del self.stopped[pid]

    def suffer(self, deeds: int, guests: int) -> None:
        """So many deeds of the list, and until so many guests have been there."""
        cells[INVITED] = guests
        while self.done.total() < deeds or cells[GUESTS] < guests:
            self.go_on()
            if self.guests and os.waitpid(self.guests, os.WNOHANG)[0]:
                raise SystemExit("the guests' process has ended")
            time.sleep(self.chance.uniform(0.02, 0.2))
            if self.done.total() < deeds:
                deed = self.deeds[self.done.total()]
                deed(self.chance.randrange(GIVEN["places"]))
                self.done[deed.__name__] += 1
                cells[ALLOWED] = max(4, GIVEN["steps"] * self.done.total() // len(self.deeds))

    def say(self, word: str) -> None:
        self.go_on(all_of_them=True)
        print(json.dumps({"is": word, "guests": int(cells[GUESTS]), **self.done}), flush=True)
        sys.stdin.readline()


def main() -> None:
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    build()[1].step()  # imports much that torch puts off
    cells[ALLOWED] = 4
    crowd = Crowd()
    while cells[STEPS] < 4:  # the run has parameters
        time.sleep(0.01)
    crowd.guests = fork(visit)
    crowd.suffer(len(crowd.deeds) // 4, GIVEN["warm"])
    crowd.say("warm")
    crowd.suffer(len(crowd.deeds), GIVEN["guests"])
    crowd.say("quiet")
    cells[ALLOWED] = 10**9
    sys.stdin.read()
    print(json.dumps({"is": "over", "lost": int(cells[LOST])}), flush=True)
    for pid in (*crowd.pids, crowd.guests):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
