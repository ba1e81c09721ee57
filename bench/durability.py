"""What durability costs: pushes with and without the journal, recovery against applying, the pause of a snapshot.

`python -m bench durability`. The server is a real one over TCP; eight workers in another process push as fast as they
get receipts. Servers with the journal and without run in turn on the same machine and the same disk (the folder of
`tempfile`; set TMPDIR to measure another one). So does one without the journal beside a process that writes as many
payloads and does nothing else (disk.py): `bound`, as a share of what the server alone does, is what that machine leaves
to a journal that appends, and `of_bound` what this one makes of it. Payloads are 2.5 MB: dense float32 of 625,000
numbers, where the server does least for each byte, int8 of 2.5 million, and top-k of 25 million.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench import disk
from lightning_async.codecs import upload_codec
from lightning_async.config import RunConfig
from lightning_async.layout import read_manifest
from lightning_async.persistence import open_journal
from lightning_async.server import Coordinator, Service, memory, recovery
from lightning_async.server.actions import Action, Event, Received
from lightning_async.server.keeper import taken
from lightning_async.transport import connect, listen
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, unpack

WORKERS = 8
ROUNDS = 3  # of each server, in turn
JOURNAL, OFF, BESIDE = "with its journal", "without", "without, beside a writer"
RECOVERED_D, RECOVERED = 10_000_000, 1000  # records
PAUSED_D = 124_000_000
KINDS: dict[str, tuple[int, str, int]] = {  # numbers, codec, pushes of each worker in a round
    "dense": (625_000, "none", 25),
    "int8": (2_480_000, "int8", 20),
    "top-k 10 %": (25_000_000, "topk(density=0.1)", 4),
}


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    for kind, (d, codec, pushes) in KINDS.items():
        yield _throughput(kind, d, codec, pushes)
    yield _recovery()
    yield _pause()


def _tensors(d: int) -> list[list[Any]]:
    return [["w", [d], "float32", "parameter"]]


def _config(codec: str) -> RunConfig:
    return RunConfig(compression=codec, download_compression="none", staleness="unbounded")


def _throughput(kind: str, d: int, codec: str, pushes: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {JOURNAL: [], OFF: [], BESIDE: []}
    latencies: dict[str, list[float]] = {JOURNAL: [], OFF: [], BESIDE: []}
    alone: list[float] = []
    for way in (OFF, JOURNAL, BESIDE) * ROUNDS:
        with tempfile.TemporaryDirectory() as folder:
            alone.append(disk.alone(Path(folder)))
            found = _served(Path(folder), way, d, codec, pushes)
        rates[way].append(found["rate"])
        latencies[way] += found["latencies"]
    ours, reference, bound = (median(rates[way]) for way in (JOURNAL, OFF, BESIDE))
    return {
        "bench": f"durable pushes of 2.5 MB ({kind}), {WORKERS} workers, against the journal off",
        "ours": ours, "reference": reference, "unit": "pushes/s", "ratio": ours / reference, "floor": 0.80,
        "bound": bound / reference, "of_bound": ours / bound,
        "receipt_p50_ms": _quantile_ms(latencies[JOURNAL], 0.5),
        "receipt_p99_ms": _quantile_ms(latencies[JOURNAL], 0.99),
        "off_p50_ms": _quantile_ms(latencies[OFF], 0.5), "off_p99_ms": _quantile_ms(latencies[OFF], 0.99),
        "disk_alone": median(alone), "of_disk": ours / median(alone),
    }  # fmt: skip


def _quantile_ms(seconds: list[float], q: float) -> float:
    return 1e3 * sorted(seconds)[min(len(seconds) - 1, int(q * len(seconds)))]


def _served(folder: Path, way: str, d: int, codec: str, pushes: int) -> dict[str, Any]:
    """Pushes per second and receipt latencies of one server, in this process; its workers are in another one."""
    recorder, coordinator = None, Coordinator(_config(codec), "bench")
    if way == JOURNAL:
        recorder = recovery.recorded(_config(codec), "bench", folder, time.monotonic())
        coordinator = recorder.coordinator
    beside = _beside(coordinator, folder) if way == BESIDE else None
    service = Service(coordinator, listen("tcp://127.0.0.1:0"), recorder=recorder)
    command = [sys.executable, "-m", "bench.durability", service.address, str(d), codec, str(pushes)]
    workers = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    waiting = threading.Thread(target=lambda: (workers.wait(), service.wake()))
    waiting.start()
    try:
        while workers.poll() is None:
            service.turn()
        assert workers.stdout is not None
        found: dict[str, Any] = json.loads(workers.stdout.read())
    finally:
        waiting.join()
        service.close()
    if beside is not None:
        beside.end()
        found["ended"] = time.monotonic()
    return {**found, "rate": len(found["latencies"]) / (found["ended"] - found["began"])}


def _beside(coordinator: Coordinator, folder: Path) -> disk.Beside:
    """What writes a payload for each update that `coordinator` gets."""
    beside, handle = disk.Beside(folder), coordinator.handle

    def handled(event: Event, now: float) -> list[Action]:
        if isinstance(event, Received) and isinstance(event.envelope.message, m.Push):
            beside.count()
        return handle(event, now)

    coordinator.handle = handled  # type: ignore[method-assign]
    return beside


def _work(address: str, d: int, codec: str, pushes: int) -> None:
    """All workers in one thread: each has one push under way, and sends the next at its receipt."""
    torch.set_num_threads(1)
    digest = read_manifest(_tensors(d)).digest
    made = upload_codec(codec)
    update = torch.randn(d, generator=torch.Generator().manual_seed(1)) / 1000
    payload = bytes(made.encode(update, made.init(d))[0])
    lines = [connect(address) for _ in range(WORKERS)]
    for i, line in enumerate(lines):
        hello = m.Hello(worker=f"w{i}", instance="1", tensors=_tensors(d), digest=digest, rank=i)
        line.send(pack(Envelope(1, hello)))
        assert line.receive(60.0) is not None
    lines[0].send(pack(Envelope(2, m.Init(digest=digest), (bytes(4 * d), b""))))
    assert lines[0].receive(60.0) is not None
    sent, took, done = [0.0] * WORKERS, [], [0] * WORKERS

    def push(i: int) -> None:
        sent[i] = time.perf_counter()
        message = m.Push(seq=done[i] + 1, base=0, digest=digest)
        lines[i].send(pack(Envelope(3 + done[i], message, (payload, b""))))

    began = time.monotonic()
    for i in range(WORKERS):
        push(i)
    while min(done) < pushes:
        for i, line in enumerate(lines):
            answer = line.receive(0.0)
            if answer is None:
                continue
            receipt = unpack(answer).message
            assert isinstance(receipt, m.Receipt)
            assert receipt.accepted, receipt
            took.append(time.perf_counter() - sent[i])
            done[i] += 1
            if done[i] < pushes:
                push(i)
        time.sleep(0.0002)
    ended = time.monotonic()
    for line in lines:
        line.close()
    print(json.dumps({"began": began, "ended": ended, "latencies": took}))


def _recovery() -> dict[str, Any]:
    """Opening a state_dir of RECOVERED updates against giving the same messages to a coordinator."""
    d, codec = RECOVERED_D, "topk(density=0.01)"
    config, digest, made = _config(codec), read_manifest(_tensors(d)).digest, upload_codec(codec)
    payloads = [bytes(made.encode(torch.randn(d), made.init(d))[0]) for _ in range(8)]
    hello = Received(b"a", Envelope(1, m.Hello(worker="a", instance="1", tensors=_tensors(d), digest=digest)))
    init = Received(b"a", Envelope(2, m.Init(digest=digest), (bytes(4 * d), b"")))
    pushes = [
        Received(b"a", Envelope(2 + n, m.Push(seq=n, base=0, digest=digest), (payloads[n % 8], b"")))
        for n in range(1, RECOVERED + 1)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorder = recovery.recorded(config, "bench", folder, 0.0)
        for event in (hello, init, *pushes):
            recorder.handle(event, 1.0)
            while not recorder.has_room:
                recorder.wait(1.0)
        recorder.close()
        plain = Coordinator(config, "bench")
        for event in (hello, init):
            plain.handle(event, 1.0)
        began = time.perf_counter()
        for event in pushes:
            plain.handle(event, 1.0)
        applied = time.perf_counter() - began
        journal = open_journal(folder)
        began = time.perf_counter()
        state = recovery.caught_up(recovery.from_snapshot(None), folder, journal)
        recovered = time.perf_counter() - began
        journal.close()
    assert state.coordinator is not None
    assert not state.differing
    assert state.coordinator.run.version == plain.run.version
    return {
        "bench": f"recovery of {RECOVERED} updates of {d:.0e} numbers (top-k 1 %), against applying them",
        "ours": recovered, "reference": applied, "unit": "s", "ratio": recovered / applied, "floor": 1.5, "lower": True,
    }  # fmt: skip


def _pause() -> dict[str, Any]:
    """How long the service's thread is busy with a snapshot, against copying what is in it once."""
    d = PAUSED_D
    coordinator = Coordinator(RunConfig(outer="nesterov(lr=0.7, momentum=0.9)"), "bench")
    digest = read_manifest(_tensors(d)).digest
    hello = m.Hello(worker="a", instance="1", tensors=_tensors(d), digest=digest)
    coordinator.handle(Received(b"a", Envelope(1, hello)), 0.0)
    coordinator.handle(Received(b"a", Envelope(2, m.Init(digest=digest), (bytes(4 * d), b""))), 0.0)
    bytes_copied = sum(t.numel() * t.element_size() for t in memory.dump(coordinator.run)[1].values())
    source = torch.ones(bytes_copied // 4)
    pauses, copies = [], []
    for _ in range(5):
        assert coordinator.run.store is not None
        coordinator.run.store.advance(lambda parameters: None)  # what was given out is not the newest any more
        began = time.perf_counter()
        snapshot = taken(coordinator.run, 1)
        pauses.append(time.perf_counter() - began)
        del snapshot
        began = time.perf_counter()
        copy = source.clone()
        copies.append(time.perf_counter() - began)
        del copy
    ours, reference = median(pauses), median(copies)
    return {
        "bench": f"pause of a snapshot of {d:.3g} parameters and their momentum, against one copy of as many bytes",
        "ours": ours, "reference": reference, "unit": "s", "ratio": ours / reference, "floor": 2.0, "lower": True,
        "bytes": bytes_copied,
    }  # fmt: skip


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
