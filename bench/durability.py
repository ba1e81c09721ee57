"""What durability costs: pushes with and without the journal, recovery against applying, the pause of a snapshot.

`python -m bench durability`. The server is a real one over TCP; eight workers in another process push as fast as they
get receipts. Both servers, with the journal and without, run in turn on the same machine and the same disk (the
folder of `tempfile`; set TMPDIR to measure another one). Payloads are 2.5 MB: dense float32 of 625,000 numbers, where
the server does least for each byte, int8 of 2.5 million, and top-k of 25 million.
"""

from __future__ import annotations

import json
import os
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

from lightning_async.codecs import upload_codec
from lightning_async.config import RunConfig
from lightning_async.layout import read_manifest
from lightning_async.persistence import open_journal
from lightning_async.server import Coordinator, Service, memory, recovery
from lightning_async.server.actions import Received
from lightning_async.server.keeper import taken
from lightning_async.server.recorder import Recorder
from lightning_async.transport import connect, listen
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, pack, unpack

WORKERS = 8
ROUNDS = 3  # of each server, in turn
GROUPS = (1, 3, 6)  # payloads that are forced together
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
    rates: dict[bool, list[float]] = {True: [], False: []}
    latencies: dict[bool, list[float]] = {True: [], False: []}
    disk: list[float] = []
    for turn in range(2 * ROUNDS):
        durable = bool(turn % 2)
        with tempfile.TemporaryDirectory() as folder:
            disk.append(_disk(Path(folder)))
            found = _served(Path(folder) if durable else None, d, codec, pushes)
        rates[durable].append(found["rate"])
        latencies[durable] += found["latencies"]
    ours, reference = median(rates[True]), median(rates[False])
    return {
        "bench": f"durable pushes of 2.5 MB ({kind}), {WORKERS} workers, against the journal off",
        "ours": ours, "reference": reference, "unit": "pushes/s", "ratio": ours / reference, "floor": 0.80,
        "receipt_p50_ms": _quantile_ms(latencies[True], 0.5), "receipt_p99_ms": _quantile_ms(latencies[True], 0.99),
        "off_p50_ms": _quantile_ms(latencies[False], 0.5), "off_p99_ms": _quantile_ms(latencies[False], 0.99),
        "group": found["group"], "disk_alone": median(disk), "of_disk": ours / median(disk),
    }  # fmt: skip


def _disk(folder: Path) -> float:
    """How many payloads a second this disk takes from a program that does nothing but append and force them, in the
    groups that are best for it: nothing that keeps them can be faster."""
    return max(_alone(folder / "alone", group) for group in GROUPS)


def _alone(path: Path, group: int) -> float:
    payload = os.urandom(2_500_000)
    with path.open("wb", buffering=0) as file:
        began = time.perf_counter()
        for number in range(1, 13):
            file.write(payload)
            if number % group == 0:
                os.fdatasync(file.fileno())
        return 12 / (time.perf_counter() - began)


def _quantile_ms(seconds: list[float], q: float) -> float:
    return 1e3 * sorted(seconds)[min(len(seconds) - 1, int(q * len(seconds)))]


def _served(folder: Path | None, d: int, codec: str, pushes: int) -> dict[str, Any]:
    """Pushes per second and receipt latencies of one server, in this process; its workers are in another one."""
    if folder is None:
        recorder, coordinator = None, Coordinator(_config(codec), "bench")
    else:
        recorder = recovery.recorded(_config(codec), "bench", folder, time.monotonic())
        coordinator = recorder.coordinator
    groups = _count_groups(recorder)
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
    return {**found, "group": sum(groups) / len(groups) if groups else 0.0}


def _count_groups(recorder: Recorder | None) -> list[int]:
    """Where the sizes of the journal's groups will be."""
    groups: list[int] = []
    if recorder is not None:
        journal = recorder.commits._journal
        append = journal.append
        journal.append = lambda records, *rest: (groups.append(len(records)), append(records, *rest))[1]  # type: ignore[method-assign]
    return groups


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

    began = time.perf_counter()
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
    rate = len(took) / (time.perf_counter() - began)
    for line in lines:
        line.close()
    print(json.dumps({"rate": rate, "latencies": took}))


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
