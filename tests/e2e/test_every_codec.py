"""Every codec in both directions, a real server and real workers: nobody drifts, nothing is lost, bytes are true."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from eventually import ENOUGH_S
from torch import Tensor, nn

from lightning_async.codecs import CODECS, Codec, codec, download_codec
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.server import ServerThread
from lightning_async.server.store import DIGEST_EVERY
from lightning_async.telemetry import Memory, events
from lightning_async.worker import downloading
from lightning_async.worker.optimizer import AsyncOptimizer
from lightning_async.worker.uploading import Uploads

pytestmark = pytest.mark.usefixtures("unhurried")
DOWNLOADS = [name for name in CODECS if name not in ("error_feedback", "auto")]


class Task:
    """A small regression with two matrices, so that low rank and sizes mean something."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.inputs = torch.randn(512, 24, generator=generator)
        self.targets = torch.tanh(self.inputs @ torch.randn(24, 3, generator=generator) / 3)
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(24, 96), nn.Tanh(), nn.Linear(96, 3))
        self.batches = torch.Generator().manual_seed(seed)

    def loss(self) -> Tensor:
        rows = torch.randint(0, 512, (64,), generator=self.batches)
        return nn.functional.mse_loss(self.model(self.inputs[rows]), self.targets[rows])

    def score(self) -> float:
        with torch.no_grad():
            return float(nn.functional.mse_loss(self.model(self.inputs), self.targets))


class Worker:
    """One worker that trains when it is told to."""

    def __init__(self, server: ServerThread, seed: int, lr: float = 0.1) -> None:
        self.task = Task(seed)
        self.optimizer = AsyncOptimizer(
            torch.optim.SGD(self.task.model.parameters(), lr=lr), self.task.model, server.address, name=f"w{seed}"
        )
        self.engine = self.optimizer.engine

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.task.loss().backward()
            self.optimizer.step()

    @property
    def uploads(self) -> Uploads:
        uploads = self.engine._courier._uploads
        assert uploads is not None
        return uploads

    @property
    def residual(self) -> Tensor:
        states = [state["residual"] for state in self.uploads.states.values() if "residual" in state]
        return torch.stack(states).sum(dim=0) if states else torch.zeros(self.engine.shared.layout.d)


class Published:
    """What the server has published at each version, as checksums."""

    def __init__(self, server: ServerThread) -> None:
        self.by_version: dict[int, int] = {}
        self._server = server

    def check(self, workers: list[Worker]) -> set[int]:
        """Every worker holds the bits of its version; the versions."""
        store = self._server.coordinator.run.store
        assert store is not None
        for worker in workers:
            if worker.engine.replica.version == store.version:
                assert torch.equal(worker.engine.replica.published, store.published)
            known = self.by_version.setdefault(worker.engine.replica.version, worker.engine.replica.digest())
            assert known == worker.engine.replica.digest()
        return set(self.by_version)


@contextmanager
def running(workers: int = 2, **config: Any) -> Iterator[tuple[ServerThread, list[Worker]]]:
    with ExitStack() as stack:
        server = stack.enter_context(ServerThread(RunConfig(**{"local_steps": 2, **config})))
        yield server, [stack.enter_context(_left(Worker(server, seed))) for seed in range(workers)]


@contextmanager
def _left(worker: Worker) -> Iterator[Worker]:
    with worker.optimizer:
        yield worker


def trained(server: ServerThread, workers: list[Worker], turns: int) -> None:
    """The workers by turns; after each turn all that hold one version hold the same bits."""
    published = Published(server)
    for turn in range(turns):
        worker = workers[turn % len(workers)]
        worker.train(2)
        worker.engine.flush()
        published.check(workers)
    for worker in workers:
        worker.engine.align()
    assert len(published.check(workers)) > turns // 2
    store = server.coordinator.run.store
    assert store is not None
    assert {worker.engine.replica.version for worker in workers} == {store.version}
    assert all(torch.equal(worker.engine.replica.published, store.published) for worker in workers)


@pytest.mark.parametrize("name", CODECS)
def test_uploads_by_every_codec_train(name: str) -> None:
    with running(compression=name) as (server, workers):
        before = workers[0].task.score()
        trained(server, workers, 60)
        report = server.coordinator.run.members
        assert all(not member.refused for member in report)
        assert workers[0].task.score() < 0.6 * before


@pytest.mark.parametrize("name", DOWNLOADS)
def test_downloads_by_every_codec_train_and_nobody_drifts(name: str) -> None:
    with running(download_compression=name) as (server, workers):
        before = workers[0].task.score()
        trained(server, workers, 60)
        assert workers[0].task.score() < 0.7 * before


@pytest.mark.parametrize("name", sorted(set(CODECS) - set(DOWNLOADS)))
def test_what_cannot_be_a_download_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match="feedback of its own"):
        ServerThread(RunConfig(download_compression=name))


@pytest.mark.parametrize("name", ["powersgd", "by_size", "topk", "auto", "int8"])
def test_gradients_of_changing_tensors(name: str) -> None:
    """Gradient mode, where now all tensors have gradients and now only the last layer's: each set with its residual."""
    with running(workers=1, compression=name, submit="gradient", local_steps=1) as (server, [worker]):
        before = worker.task.score()
        for turn in range(80):
            for p in worker.task.model[0].parameters():
                p.requires_grad_(turn % 3 != 2)
            worker.train(1)
        [member] = server.coordinator.run.members
        assert not member.refused
        assert member.accepted == 80
        assert worker.task.score() < 0.7 * before
        assert {tensors for _, tensors in worker.uploads.states} == {(0, 1, 2, 3), (2, 3)}


class Altering:
    """A download codec that decodes one payload a little wrong, as a bit that flipped in memory would."""

    def __init__(self, inner: Codec, when: int) -> None:
        self._inner, self._when, self.decoded = inner, when, 0

    @property
    def codec(self) -> Codec:
        values = {name: getattr(self._inner, name) for name in ("spec", "init", "encode", "max_bytes")}
        return Codec(decode=self.decode, **values)

    def decode(self, payload: Any, d: int) -> Tensor:
        self.decoded += 1
        vector = self._inner.decode(payload, d).clone()
        if self.decoded == self._when:
            vector[3] += 1e-3
        return vector


def test_an_altered_delta_is_found_by_the_digest_and_mended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running(download_compression="topk(density=0.2)") as (server, [worker, other]):
        altering = Altering(codec("topk(density=0.2)"), 3)
        monkeypatch.setattr(worker.engine._courier._downloads, "_codecs", [altering.codec])
        store = server.coordinator.run.store
        assert store is not None
        wrong = 0
        with caplog.at_level(logging.ERROR):
            for _ in range(2 * DIGEST_EVERY):
                worker.train(2)
                worker.engine.flush()
                wrong += not torch.equal(worker.engine.replica.published, store.published)
        assert altering.decoded >= 3
        assert 0 < wrong < DIGEST_EVERY, "it went on with other parameters until the next digest, no longer"
        assert caplog.text.count("differs from the published one; taking a snapshot") == 1
        other.engine.align()
        assert torch.equal(other.engine.replica.published, worker.engine.replica.published)


def test_what_a_worker_missed_comes_as_deltas_from_where_it_was() -> None:
    with running(download_compression="topk(density=0.01, values='int8')") as (_, [busy, away]):
        away.train(2)
        away.engine.flush()
        before, held = away.engine.traffic.received_bytes, away.engine.replica.version
        for _ in range(6):
            busy.train(2)
            busy.engine.flush()
        busy.engine.align()
        away.engine.align()
        assert away.engine.replica.version == busy.engine.replica.version >= held + 6
        assert torch.equal(away.engine.replica.published, busy.engine.replica.published)
        assert away.engine.wait(lambda: away.engine.traffic.received_bytes > before, ENOUGH_S)
        away.engine.wait(lambda: False, 0.3)  # for what comes too much
        assert 0 < away.engine.traffic.received_bytes - before < 4 * away.engine.shared.layout.d


@pytest.mark.parametrize("download", ["none", "topk"])
def test_packed_snapshots_are_the_published_parameters_bit_for_bit(
    download: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms: list[str] = []
    plain = downloading.read_snapshot

    def noted(params: Any, *rest: Any) -> Any:
        forms.append(params.form)
        return plain(params, *rest)

    monkeypatch.setattr(downloading, "PACKED_BYTES", 0)
    monkeypatch.setattr(downloading, "PACKED_BELOW", float("inf"))
    monkeypatch.setattr(downloading, "read_snapshot", noted)
    with running(download_compression=download) as (server, workers):
        trained(server, workers, 20)
    assert forms.count("packed") >= 2, "for joining at least; what a receipt brings of so small a model is plain"


class Books:
    """What was given to the codec and what was accepted of it."""

    def __init__(self, workers: list[Worker]) -> None:
        d = workers[0].engine.shared.layout.d
        self.given = torch.zeros(d, dtype=torch.float64)
        for worker in workers:
            self._watch(worker.uploads)

    def _watch(self, uploads: Uploads) -> None:
        plain: Callable[..., Any] = uploads.encode

        def encode(push: Any, vector: Tensor) -> Any:
            self.given += vector.double()
            return plain(push, vector)

        uploads.encode = encode  # type: ignore[method-assign]


@pytest.mark.parametrize("spec", ["topk", "error_feedback(powersgd(1))", "auto"])
def test_a_refused_update_goes_back_into_the_residual(spec: str) -> None:
    """Accepted decoded payloads + residuals = everything given to the codecs. The server's step is plain addition."""
    config = {"compression": spec, "download_compression": "none", "staleness": "fixed(bound=1)", "follow": False}
    with running(**config) as (server, [quick, slow]):
        store = server.coordinator.run.store
        assert store is not None
        start, books = store.parameters.double(), Books([quick, slow])
        for _ in range(12):
            slow.train(1)  # half a round, from an old version
            for _ in range(3):
                quick.train(2)
                quick.engine.flush()
            slow.train(1)
            slow.engine.wait(lambda: slow.engine._courier.idle, ENOUGH_S)
            slow.engine._take_news()
        refused = server.coordinator.run.members.named("w1")
        assert refused is not None
        assert refused.refused["stale"] == 12, "the test's own premise"
        slow.engine.wait(lambda: slow.engine._courier.idle, ENOUGH_S)
        accepted = start - store.parameters.double()
        missing = books.given - accepted - quick.residual.double() - slow.residual.double()
        assert float(missing.abs().max()) < 1e-5
        assert float(slow.residual.abs().max()) > 1e-3, "what was refused is there"


def test_a_slow_line_takes_auto_down_the_ladder_and_everybody_hears_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Memory()
    with ServerThread(RunConfig(local_steps=2, compression="auto(start=1)"), sinks=[sink]) as server:
        worker = Worker(server, 0)
        note = Uploads.note

        def slow(self: Uploads, payload: Any, took_s: float, rtt_s: float, compute_s: float) -> None:
            note(self, payload, took_s=memoryview(payload).nbytes / 2000.0, rtt_s=0.0, compute_s=0.4)

        monkeypatch.setattr(Uploads, "note", slow)
        with caplog.at_level(logging.INFO), worker.optimizer:
            worker.train(20)
            worker.engine.flush()
            assert "uploads go on with topk(density=0.1" in caplog.text
        changes = [event for event in sink.events if isinstance(event, events.CodecChanged)]
    ladder = codec("auto").ladder
    assert ladder is not None
    assert changes[0].before == ladder.specs[1]
    assert changes[0].worker == "w0"
    assert ladder.specs.index(changes[-1].after) > 3


def test_bytes_in_the_report_are_those_of_the_socket() -> None:
    with running(compression="topk", beat_s=0.2) as (server, workers):
        for worker in workers:
            worker.train(6)
            worker.engine.flush()
        for worker in workers:
            worker.optimizer.close()
        members = {member.name: member for member in server.coordinator.run.members}
    for worker in workers:
        sent, received = worker.engine.traffic.sent_bytes, worker.engine.traffic.received_bytes
        told = members[worker.engine.name]
        farewell = sent - told.sent_bytes  # the Leave that carried these numbers, and its answer
        assert 0 < farewell < 400
        assert 0 <= received - told.received_bytes < 400
    assert members["w1"].sent_bytes < 4 * workers[1].engine.shared.layout.d, "top-k, not the tensors"


def test_the_rule_for_downloads_is_what_a_run_has() -> None:
    with running(workers=1, compression="topk") as (_, [worker]):
        assert worker.engine.config.download_compression == download_codec(None, codec("topk")).spec
