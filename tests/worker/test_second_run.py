"""A second run on a state_dir begins where the first has ended, for every worker: parameters, loss, numbers, and
nothing of the first run's error feedback comes twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from eventually import ENOUGH_S
from rounds import flat, model
from torch import Tensor, nn

from lightning_async import AsyncOptimizer
from lightning_async.config import RunConfig
from lightning_async.persistence import open_journal
from lightning_async.server import Keeper, Service, recording
from lightning_async.server.history import read_run
from lightning_async.server.recovery import recorded
from lightning_async.transport import listen
from lightning_async.wire import messages as m

CONFIG = RunConfig(local_steps=2, compression="topk(density=0.1)", download_compression="none", staleness="unbounded")
NAMES = ("a", "b")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A server on `folder` that keeps its whole journal; its address."""
    recorder = recorded(CONFIG, "twice", folder, time.monotonic(), run_id="one", keeps=True)
    keeper = Keeper(folder, commits=recorder.commits, prunes=False)
    service = Service(recorder.coordinator, listen("tcp://127.0.0.1:0"), keeper=keeper, recorder=recorder)
    over = threading.Event()

    def serve() -> None:
        service.serve(lambda: "over" if over.is_set() else "")
        service.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield service.address
    finally:
        over.set()
        service.wake()
        thread.join(ENOUGH_S)


def loss_of(net: nn.Module, seed: int) -> Tensor:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(seed))
    loss: Tensor = (net(x) - x[:, :1]).square().mean()
    return loss


def trained(folder: Path, lr: float, steps: int) -> dict[str, tuple[Tensor, float]]:
    """Both workers by turns, from models of their own; what each began with: its parameters and its first loss."""
    began: dict[str, tuple[Tensor, float]] = {}
    with served(folder) as address, ExitStack() as joined:
        workers = []
        for place, name in enumerate(NAMES):
            net = model(place)
            optimizer = AsyncOptimizer(torch.optim.SGD(net.parameters(), lr=lr), net, address, name=name)
            workers.append((name, net, joined.enter_context(optimizer)))
        for step in range(steps):
            for place, (name, net, optimizer) in enumerate(workers):
                optimizer.zero_grad()
                loss = loss_of(net, step * len(NAMES) + place)
                began.setdefault(name, (flat(net).clone(), float(loss.detach())))
                loss.backward()
                optimizer.step()
    return began


def published(folder: Path) -> Tensor:
    store = read_run(folder).run.store
    assert store is not None
    return store.published.clone()


def numbers(folder: Path) -> dict[str, list[int]]:
    """The sequence numbers of all accepted updates, by worker and in order."""
    found: dict[str, list[int]] = {name: [] for name in NAMES}
    journal, names = open_journal(folder, writing=False), {}
    for record in journal.read():
        step = recording.read_step(record)
        if step.event is None or not hasattr(step.event, "envelope"):
            continue
        message, peer = step.event.envelope.message, step.event.peer
        if isinstance(message, m.Hello):
            names[peer] = message.worker
        elif isinstance(message, m.Push) and step.event.refused is None:
            found[names[peer]].append(message.seq)
    journal.close()
    return found


@pytest.fixture
def once(tmp_path: Path) -> Path:
    """The folder of a run of two workers with top-k and error feedback, which has ended."""
    folder = tmp_path / "state"
    folder.mkdir()
    trained(folder, lr=0.1, steps=16)
    return folder


def test_every_worker_begins_with_the_parameters_and_the_loss_that_the_first_run_ended_with(once: Path) -> None:
    ended = published(once)
    began = trained(once, lr=0.1, steps=4)
    net = model(7)
    torch.nn.utils.vector_to_parameters(ended, net.parameters())
    for place, name in enumerate(NAMES):
        parameters, loss = began[name]
        assert torch.equal(parameters, ended)
        assert loss == float(loss_of(net, place).detach())
    assert not torch.equal(ended, published(once)), "and it goes on from there"


def test_nothing_of_the_first_run_is_sent_again(once: Path) -> None:
    """A worker that does not move has nothing to send; what a codec or a buffer still held would move the model."""
    ended = published(once)
    trained(once, lr=0.0, steps=16)
    assert torch.equal(published(once), ended)


def test_numbers_go_on_where_they_were(once: Path) -> None:
    first = numbers(once)
    trained(once, lr=0.1, steps=16)
    both = numbers(once)
    for name in NAMES:
        assert len(first[name]) >= 8
        assert both[name] == list(range(1, len(both[name]) + 1))
        assert len(both[name]) >= len(first[name]) + 8
