"""A server and a worker's link in one thread and in virtual time, over the memory transport and a scripted network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_async.config import RunConfig
from lightning_async.layout import read_manifest
from lightning_async.server import Coordinator, Service
from lightning_async.transport import memory
from lightning_async.transport.base import Connection, Traffic
from lightning_async.transport.faults import FaultyConnection, Script, connection_with
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Frame, unpack
from lightning_async.worker.link import Link

ROWS = 100_000  # of a large model: 1.2 MB
SLOW = Script().delay(0.5)  # seconds each way, so that a transfer lasts

D = 6
TENSORS: list[list[Any]] = [["w", [2, 3], "float32", "parameter"]]
DIGEST = read_manifest(TENSORS).digest
STEP_S = 0.05


def raw(vector: Tensor) -> Frame:
    return vector.to(torch.float32).numpy().tobytes()


class Altering(Connection):
    """Alters one bit of an update now and then, by turns in its header and in its vector."""

    def __init__(self, inner: Connection, every: int) -> None:
        self._inner, self._every, self._seen, self.fired = inner, every, 0, 0

    def send(self, frames: Sequence[Frame]) -> None:
        if len(frames) > 2:
            self._seen += 1
            if self._seen % self._every == 0:
                self.fired += 1
                place = 1 + self.fired % 2
                altered = bytearray(frames[place])
                altered[4 + self._seen % (len(altered) - 4)] ^= 4
                frames = [*frames[:place], altered, *frames[place + 1 :]]
        self._inner.send(frames)

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        return self._inner.receive(timeout_s)

    def wake(self) -> None:
        self._inner.wake()

    def traffic(self) -> Traffic:
        return self._inner.traffic()

    def close(self) -> None:
        self._inner.close()


class Losing(Connection):
    """Loses the next `lose` receipts that come, whatever comes between them."""

    def __init__(self, inner: Connection) -> None:
        self._inner, self.lose = inner, 0

    def send(self, frames: Sequence[Frame]) -> None:
        self._inner.send(frames)

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        frames = self._inner.receive(timeout_s)
        if frames is None or not self.lose or not isinstance(unpack(frames).message, m.Receipt):
            return frames
        self.lose -= 1
        return None

    def wake(self) -> None:
        self._inner.wake()

    def traffic(self) -> Traffic:
        return self._inner.traffic()

    def close(self) -> None:
        self._inner.close()


class Town:
    """`advance` moves the clock; `lines` are the connections that the link has dialled, the newest last. The
    model has `rows` times 3 parameters."""

    def __init__(
        self,
        script: Script | None = None,
        patience_s: float = 60.0,
        alter_every: int = 10**9,
        rows: int = 2,
        **config: Any,
    ) -> None:
        self.now = 1000.0
        self.tensors: list[list[Any]] = [["w", [rows, 3], "float32", "parameter"]]
        self.d, self.digest = 3 * rows, read_manifest(self.tensors).digest
        self.config = RunConfig(**{"beat_s": 1.0, "patience_s": 20.0, "weight": "constant", **config})
        self.script = script or Script()
        self.lines: list[FaultyConnection] = []
        self.altering: list[Altering] = []
        self._alter_every = alter_every
        self.welcomes: list[m.Welcome] = []
        self.acks: list[m.Ack] = []
        self.address = "memory://town"
        self.start_server()
        hello = m.Hello(worker="w", instance="1", tensors=self.tensors, digest=self.digest)
        self.link = Link(
            self.dial,
            hello,
            self.welcomes.append,
            self.acks.append,
            self.address,
            clock=self.clock,
            patience_s=patience_s,
            rejoin_patience_s=120.0,
        )

    def clock(self) -> float:
        return self.now

    def start_server(self) -> None:
        """A new server without state, at the same address."""
        self.coordinator = Coordinator(self.config, "town")
        self.listener = memory.listen(self.address, queue=1000)
        self.service: Service | None = Service(self.coordinator, self.listener, clock=self.clock)

    def stop_server(self) -> None:
        """As if it was killed: nobody says goodbye."""
        self.listener.close()
        self.service = None

    def dial(self) -> FaultyConnection:
        """The first connection is on the scripted network, later ones on a good one."""
        script = self.script if not self.lines else Script()
        self.altering.append(Altering(memory.connect(self.address, queue=1000), self._alter_every))
        self.lines.append(connection_with(script, self.altering[-1], self.clock))
        return self.lines[-1]

    def advance(self, seconds: float) -> None:
        """Let time pass for everybody."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += STEP_S
            self.link.pump(0.0)
            for _ in range(8 if self.service is not None else 0):
                self.service.wake()
                self.service.turn()
        self.link.pump(0.0)

    def until(self, ready: Callable[[], object], limit_s: float) -> float:
        """Let time pass until `ready()`; the seconds that it took."""
        began = self.now
        while not ready():
            assert self.now - began < limit_s, f"not within {limit_s} s"
            self.advance(STEP_S)
        return self.now - began

    def begin(self) -> None:
        """Join, and give the run its first parameters: zeros."""
        self.until(lambda: self.link.joined, 60.0)
        done = self.ask(m.Init(digest=self.digest), (raw(torch.zeros(self.d)), b""))
        self.until(lambda: done, 60.0)

    def ask(self, message: m.Request, payload: tuple[Frame, ...] = ()) -> list[m.Reply]:
        """Where the answer will be."""
        answers: list[m.Reply] = []
        self.link.request(message, lambda reply, _: answers.append(reply), payload)
        return answers

    def push(self, seq: int, base: int = 0) -> list[m.Reply]:
        """Update number `seq`, which subtracts seq from every parameter."""
        return self.ask(m.Push(seq=seq, base=base, digest=self.digest), (raw(torch.full((self.d,), float(seq))), b""))

    @property
    def parameters(self) -> list[float]:
        store = self.coordinator.run.store
        assert store is not None
        return store.parameters.tolist()

    def close(self) -> None:
        self.link.connection.close()
        self.listener.close()
