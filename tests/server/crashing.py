"""A scripted run whose server dies again and again, and the same run without any of that.

The script is fixed: which worker sends what, in which order. The worker's side does what a real one does: it keeps an
update until it has a receipt, says Hello again to a new server, asks again, keeps what its codec left out, and takes
back what was refused. So whatever the deaths were, the run ends as the reference: equal in every bit of every tensor.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from children import Children
from crash_host import Life
from eventually import ENOUGH_S, eventually
from torch import Tensor

from lightning_async.codecs import State, upload_codec
from lightning_async.config import RunConfig
from lightning_async.layout import read_manifest
from lightning_async.server import Coordinator, memory
from lightning_async.server.actions import Received, Send
from lightning_async.transport import Connection, connect
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, Frame, pack, unpack

D = 3000
TENSORS: list[list[Any]] = [["w", [D], "float32", "parameter"], ["norm.mean", [5], "float32", "buffer"]]
DIGEST = read_manifest(TENSORS).digest
POINTS = (
    *("received", "answering", "answered"),
    *("journal.written", "journal.synced", "journal.inserted", "journal.committed", "journal.pruned"),
    *("snapshot.begun", "snapshot.tensors", "snapshot.manifest", "snapshot.renamed", "snapshot.cleaned"),
)
SLICE_S = 0.02
MOST_ROUNDS = 3000


@dataclass(frozen=True)
class Case:
    """A configuration and how many workers push in turn."""

    name: str
    workers: int
    config: dict[str, Any]


CASES = (
    Case("mean, one by one", 2, {"outer": "nesterov(lr=0.7, momentum=0.9)", "weight": "polynomial(a=0.5)"}),
    Case("krum of five", 5, {"aggregation": "krum(f=1)", "quorum": 5, "workers": 5, "outer": "nesterov(lr=0.5)"}),
    Case("top-k with feedback", 3, {"compression": "topk(density=0.05)", "quorum": 2, "staleness": "fixed(bound=50)"}),
)


@dataclass(frozen=True)
class Turn:
    """One push of the script; `broken` ones hold a NaN, which the server refuses and the worker takes back."""

    worker: str
    seq: int
    base: int
    broken: bool


def script(case: Case, rounds: int) -> list[Turn]:
    """The turns of a run: every worker once a round."""
    names = [f"w{i}" for i in range(case.workers)]
    quorum, waiting, version, turns = int(case.config.get("quorum", 1)), set[str](), 0, []
    for seq, name in itertools.product(range(1, rounds + 1), names):
        broken = (seq * 7 + names.index(name)) % 11 == 5
        turns.append(Turn(name, seq, version, broken))
        waiting |= set() if broken else {name}
        if len(waiting) == quorum:
            version += 1
            waiting.clear()
    return turns


def vector(turn: Turn) -> Tensor:
    """What this turn has to send."""
    generator = torch.Generator().manual_seed(1000 * turn.seq + int(turn.worker[1:]))
    return torch.randn(D, generator=generator, dtype=torch.float32) / 10


class Workers:
    """The workers' states: what their codecs keep, and every update as it was sent and what became of it."""

    def __init__(self, case: Case) -> None:
        self.codec = upload_codec(case.config.get("compression", "none"))
        self._states: dict[str, State] = {}
        self.given: Tensor = torch.zeros(D, dtype=torch.float64)
        self.accepted: Tensor = torch.zeros(D, dtype=torch.float64)
        self.fold_back = True

    def payload(self, turn: Turn) -> tuple[Frame, ...]:
        state = self._states.get(turn.worker) or self.codec.init(D)
        update = vector(turn)
        payload, self._states[turn.worker] = self.codec.encode(update, state)
        self.given += update
        buffers = torch.full((5,), float(turn.seq), dtype=torch.float32)
        buffers[0] = float("nan") if turn.broken else 1.0
        return bytes(payload), buffers.numpy().tobytes()

    def settle(self, turn: Turn, payload: Frame, receipt: m.Receipt) -> None:
        """A receipt has come: what was refused goes back into the residual, where there is one."""
        if receipt.accepted:
            self.accepted += self.codec.decode(payload, D)
        elif self.codec.fold_back is None or not self.fold_back:
            self.given -= vector(turn) if self.codec.fold_back is None else 0.0
        else:
            self._states[turn.worker] = self.codec.fold_back(payload, self._states[turn.worker])

    def missing(self) -> float:
        """The largest part of what was given that neither the server nor a residual has."""
        kept = sum(
            (state["residual"].double() for state in self._states.values() if "residual" in state), torch.zeros(D)
        )
        return float((self.given - self.accepted - kept).abs().max())


def hello(name: str) -> m.Hello:
    return m.Hello(worker=name, instance="1", tensors=TENSORS, digest=DIGEST, rank=int(name[1:]))


def first() -> tuple[Frame, ...]:
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(D, generator=generator, dtype=torch.float32)
    return start.numpy().tobytes(), torch.zeros(5).numpy().tobytes()


def message(turn: Turn) -> m.Push:
    return m.Push(seq=turn.seq, base=turn.base, digest=DIGEST, samples=1 + turn.seq % 3)


def uninterrupted(case: Case, rounds: int, fold_back: bool = True) -> tuple[Coordinator, Workers]:
    """The reference: the script, and a coordinator that nobody kills."""
    coordinator, ids, workers = (
        Coordinator(RunConfig(**case.config), "crashing", run_id="one"),
        itertools.count(1),
        Workers(case),
    )
    workers.fold_back = fold_back

    def ask(name: str, message: m.Request, payload: tuple[Frame, ...] = ()) -> Any:
        number = next(ids)
        actions = coordinator.handle(Received(name.encode(), Envelope(number, message, payload)), 1.0)
        return next(a.envelope.message for a in actions if isinstance(a, Send) and a.envelope.id == number)

    for i in range(case.workers):
        assert isinstance(ask(f"w{i}", hello(f"w{i}")), m.Welcome)
    assert isinstance(ask("w0", m.Init(digest=DIGEST), first()), m.Ack)
    for turn in script(case, rounds):
        payload = workers.payload(turn)
        receipt = ask(turn.worker, message(turn), payload)
        assert receipt.accepted is not turn.broken, receipt
        workers.settle(turn, payload[0], receipt)
    return coordinator, workers


class Host:
    """The program that serves lives. `with` ends it and all of them."""

    def __init__(self) -> None:
        self._lived: set[int] = set()
        self._children = Children()
        self._process: subprocess.Popen[str] = self._children.start(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("crash_host.py"))], stdin=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "HOST\n"

    def begin(self, life: Life) -> tuple[int, str] | None:
        """(pid, address) of a server that listens; None when it died before it did."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(life)) + "\n")
        self._process.stdin.flush()
        while True:
            word, pid, *rest = self._process.stdout.readline().split()
            if word == "READY":
                self._lived.add(int(pid))
                return int(pid), rest[0]
            if int(pid) not in self._lived:
                return None

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self._children.end()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def end(pid: int) -> None:
    """Kill it, unless it is dead already; it may die at any moment."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Killed(Exception):
    """The server has gone."""


class Trial:
    """The script against servers that die. `kills` counts them; `receipts` are the ones that the workers got.

    It goes on for `rounds` rounds, and until the last of the servers that are to die has died.
    """

    def __init__(self, host: Host, case: Case, folder: Path, rounds: int, seed: int, **life: Any) -> None:
        self._host, self.case, self._folder, self.rounds = host, case, folder, rounds
        self._over = False  # whether nobody is to die any more
        folder.mkdir(exist_ok=True)
        self._life, self._chance = life, random.Random(seed)
        self.workers = Workers(case)
        self.kills = 0
        self.receipts: dict[tuple[str, int], m.Receipt] = {}
        self._lines: dict[str, Connection] = {}
        self._pid = 0
        self._ids = itertools.count(1)
        self._kill_at: float | None = None

    def run(self, points: tuple[str, ...], random_kills: int = 0) -> Trial:
        """The whole script, under servers that die at each of `points` in turn, and then at random times."""
        fates = list(points) + [""] * random_kills
        self._chance.shuffle(fates)
        self._fates = iter(fates)
        try:
            self._next_server()
            for turn in script(self.case, MOST_ROUNDS):
                if turn.seq > self.rounds and turn.worker == "w0" and self._over:
                    break
                self.rounds = max(self.rounds, turn.seq)
                payload = self.workers.payload(turn)
                receipt = self._insist(turn.worker, message(turn), payload)
                assert isinstance(receipt, m.Receipt), receipt
                assert receipt.accepted is not turn.broken, receipt
                self.receipts[turn.worker, turn.seq] = receipt
                self.workers.settle(turn, payload[0], receipt)
                if self._chance.random() < 0.2:
                    again = self._insist(turn.worker, message(turn), payload)
                    assert again == receipt, "a repeated push gets its first receipt"
            return self
        finally:
            self.close()

    def close(self) -> None:
        self._hang_up()
        if self._pid:
            end(self._pid)
            eventually(lambda: not alive(self._pid))

    def _insist(self, name: str, request: m.Request, payload: tuple[Frame, ...] = ()) -> m.Message:
        while True:
            try:
                return self._ask(name, request, payload)
            except Killed:
                self._next_server()

    def _next_server(self) -> None:
        """Start one after the other until one lives long enough to let everybody in."""
        while True:
            self._hang_up()
            fate = next(self._fates, None)
            self._over = fate is None
            life = Life(str(self._folder), self.case.config, fate or "", self._chance.randint(1, 6), **self._life)
            self._pid, address = self._born(life)
            limit_s = 0.06 if fate == "" else 0.5  # a point may be one that this life does not come to
            self._kill_at = None if fate is None else time.monotonic() + self._chance.random() * limit_s
            try:
                if self._pid:
                    self._let_in(address)
                    return
            except Killed:
                pass

    def _born(self, life: Life) -> tuple[int, str]:
        born = self._host.begin(life)
        assert born or life.point, "a server that nobody kills has died before it listened"
        if born is None:
            self.kills += 1
        return born or (0, "")

    def _let_in(self, address: str) -> None:
        for i in range(self.case.workers):
            self._lines[f"w{i}"] = connect(address)
            welcome = self._ask(f"w{i}", hello(f"w{i}"))
            assert isinstance(welcome, m.Welcome), welcome
            known = max((seq for name, seq in self.receipts if name == f"w{i}"), default=0)
            assert welcome.last_seq in (known, known + 1), "what has a receipt is known, and at most one more"
        if welcome.version < 0:
            assert isinstance(self._ask("w0", m.Init(digest=DIGEST), first()), m.Ack)

    def _ask(self, name: str, request: m.Request, payload: tuple[Frame, ...] = ()) -> m.Message:
        line, number = self._lines[name], next(self._ids)
        line.send(pack(Envelope(number, request, payload)))
        deadline = time.monotonic() + ENOUGH_S
        while time.monotonic() < deadline:
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                end(self._pid)
            frames = line.receive(SLICE_S)
            if frames is not None:
                envelope = unpack(frames)
                if envelope.id == number:
                    return envelope.message
            elif not alive(self._pid):
                self.kills += 1
                raise Killed
        raise AssertionError(f"no answer to {request}")

    def _hang_up(self) -> None:
        for line in self._lines.values():
            line.close()
        self._lines.clear()


def assert_equal(coordinator: Coordinator, reference: Coordinator) -> None:
    """Everything that the next steps depend on is the same, bit for bit."""
    (ours, tensors), (record, expected) = memory.dump(coordinator.run), memory.dump(reference.run)
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name
    for key in ("steps_total", "staleness", "stepper"):
        assert ours[key] == record[key], key
    for name, member in record["members"].items():
        mine = ours["members"][name]
        for key in ("last_seq", "accepted", "refused", "steps", "samples", "receipts", "included"):
            assert mine[key] == member[key], (name, key)
