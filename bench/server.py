"""Push, mean, SGD and publish of a 10-million-parameter float32 update: the server against a bare loop.

Ours: the frames of a Push go in, the receipt's frames come out; a Pull goes in, the frames of the new parameters come
out. No socket; nothing of the protocol is left out. Reference: the same passes over the same number of bytes, each a
single numpy or torch call on buffers that exist already: checksum of what came, is it finite, its norm, the step, a
copy to publish, the checksum of what goes out. Both in turn, in this process, on one thread; the ratio is the median.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

import numpy as np
import torch

from lightning_async.config import RunConfig
from lightning_async.layout import read_manifest
from lightning_async.server import Service
from lightning_async.server.coordinator import Coordinator
from lightning_async.transport.base import Frame, Listener
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, unpack

D = 10_000_000
TENSORS = [["w", [D], "float32", "parameter"]]
DIGEST = read_manifest(TENSORS).digest
TRIPS = 31


class Table(Listener):
    """A listener without a line: the frames of one request are laid down, those of its answer are picked up."""

    address = "table"

    def __init__(self) -> None:
        self.request: list[memoryview] | None = None
        self.answer: list[Frame] = []

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        frames, self.request = self.request, None
        return None if frames is None else (b"worker", frames)

    def send(self, peer: bytes, frames: Any) -> bool:
        self.answer = list(frames)
        return True

    def wake(self) -> None: ...

    def limit(self, largest_message_bytes: int) -> None: ...

    def close(self) -> None: ...


class Trip:
    """The server's side of one round after another."""

    def __init__(self, start: np.ndarray[Any, Any]) -> None:
        self._table = Table()
        self._service = Service(Coordinator(RunConfig(), "bench"), self._table)
        self._id = self._seq = 0
        self.ask(m.Hello(worker="a", instance="1", tensors=TENSORS, digest=DIGEST))
        self.ask(m.Init(digest=DIGEST), (start.data.cast("B"), b""))
        self.push: list[memoryview] = []

    def ask(self, message: m.Request, payload: tuple[Frame, ...] = ()) -> list[Frame]:
        self._id += 1
        return self.exchange(pack(Envelope(self._id, message, payload)))

    def exchange(self, frames: list[Frame]) -> list[Frame]:
        self._table.request = [memoryview(frame) for frame in frames]
        self._service.turn()
        return self._table.answer

    def lay(self, update: np.ndarray[Any, Any]) -> None:
        """Pack the next push; a worker's work, and not measured."""
        self._seq += 1
        self._id += 1
        push = m.Push(seq=self._seq, base=self._seq - 1, digest=DIGEST)
        self.push = [memoryview(f) for f in pack(Envelope(self._id, push, (update.data.cast("B"), b"")))]

    def run(self) -> float:
        """Seconds from the frames of a push to the frames of the parameters that hold it."""
        start = time.perf_counter()
        self.exchange(list(self.push))
        frames = self.ask(m.Pull(have=self._seq - 1))
        took = time.perf_counter() - start
        params = unpack([memoryview(frame) for frame in frames], verify=False).message
        assert isinstance(params, m.Params)
        assert params.version == self._seq
        return took


class Bare:
    """The same passes and nothing else."""

    def __init__(self, start: np.ndarray[Any, Any]) -> None:
        self._parameters = torch.from_numpy(start.copy())
        self._published = torch.from_numpy(start.copy())

    def run(self, update: np.ndarray[Any, Any]) -> float:
        start = time.perf_counter()
        vector = torch.from_numpy(update)
        total = int(np.add.reduce(update.view("<u8")))
        finite = bool(torch.isfinite(vector.sum()))
        norm = float(torch.linalg.vector_norm(vector))
        self._parameters.add_(vector, alpha=-1.0)
        self._published.copy_(self._parameters)
        total += int(np.add.reduce(self._published.numpy().view("<u8")))
        took = time.perf_counter() - start
        assert finite
        assert norm > 0
        assert total
        return took


def rows() -> Iterator[Mapping[str, Any]]:
    torch.set_num_threads(1)
    generator = np.random.default_rng(1)
    update = generator.standard_normal(D, dtype=np.float32)
    trip, bare = Trip(update), Bare(update)
    ours, reference = [], []
    for i in range(TRIPS):
        trip.lay(update)
        for measured in (0, 1) if i % 2 else (1, 0):
            if measured:
                ours.append(trip.run())
            else:
                reference.append(bare.run(update))
    yield {
        "bench": "server, push + mean + SGD + publish of 10 million float32",
        "ours": 1 / median(ours),
        "reference": 1 / median(reference),
        "floor": 0.60,
        "unit": "updates/s",
        "ratio": median(there / here for here, there in zip(ours[3:], reference[3:], strict=True)),
    }
