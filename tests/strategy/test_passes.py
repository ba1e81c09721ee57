"""Epochs that are passes of the run: Lightning's loop ends them where the leases do, and all that hangs on it works."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from eventually import ENOUGH_S, eventually
from lightning.pytorch import Callback
from models import BATCH, SAMPLES, STEPS, Checked, Numbered, loader, sgd, trainer
from test_shares import Listing, numbered
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_async import AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.scheduling import Ledger
from lightning_async.server import ServerThread
from lightning_async.worker import AsyncOptimizer, LeaseSampler

ONE = RunConfig(local_steps=2, workers=1)


def ledger(server: ServerThread) -> Ledger:
    return server.coordinator.run.streams["train-0"]


def numbers_of(module: Listing) -> Counter[int]:
    return Counter(module.samples)


class Taking:
    """Another worker of the run, without Lightning, that takes leases in its first pass."""

    def __init__(self, server: ServerThread, module: nn.Module) -> None:
        copy = type(module)()
        self._optimizer = AsyncOptimizer(sgd(copy), copy, server.address, name="other")
        self.engine = self._optimizer.engine
        self.sampler = LeaseSampler(self.engine, "train-0", SAMPLES, BATCH, shuffle=False)
        self.sampler.passes = (0, 1)

    def take(self, count: int) -> list[int]:
        drawn = iter(self.sampler)
        return [next(drawn) for _ in range(count)]

    @contextlib.contextmanager
    def dying(self, server: ServerThread) -> Iterator[None]:
        """Meanwhile this one dies, once the worker "ours" has come to its end and waits for what is held here."""

        def die() -> None:
            eventually(lambda: ledger(server).left(0) == 0 and not ledger(server).held("ours"), ENOUGH_S, "the end")
            self.die(server)

        thread = threading.Thread(target=die, daemon=True)
        thread.start()
        yield
        thread.join()

    def die(self, server: ServerThread) -> None:
        """Go without a word, as far as the server's ledger is concerned."""
        self.engine.close("died")
        eventually(lambda: not server.coordinator.run.members.named("other").alive, ENOUGH_S, "its leave")


@pytest.mark.parametrize("processes", [0, 2])
def test_an_epoch_longer_than_expected_is_validated_at_its_end(processes: int) -> None:
    """Three workers are expected, so a third of the samples; there is one, which takes them all."""

    class Both(Listing, Checked): ...

    module, ends = Both(), []

    class Ends(Callback):
        def on_validation_start(self, ours: Any, _: Any) -> None:
            ends.append((ours.current_epoch, ours.global_step, ours.fit_loop.epoch_loop.batch_progress.is_last_batch))

    with ServerThread(RunConfig(local_steps=2, workers=3)) as server:
        ours = trainer(AsyncWANStrategy(server.address), max_epochs=2, callbacks=[Ends()])
        ours.fit(module, DataLoader(Numbered(), BATCH, num_workers=processes), loader(16))
        assert ledger(server).passes == 2
    assert ends == [(0, STEPS, True), (1, 2 * STEPS, True)]
    assert module.samples == 2 * list(range(SAMPLES))
    assert ours.num_training_batches == STEPS


def test_the_last_batches_of_an_epoch_are_stepped_on_though_they_do_not_fill_an_accumulation() -> None:
    module = Listing()
    with ServerThread(ONE) as server:
        ours = trainer(AsyncWANStrategy(server.address), max_epochs=2, accumulate_grad_batches=4)
        ours.fit(module, numbered())
        assert (ledger(server).passes, ledger(server).applied) == (2, 2 * SAMPLES)
    assert ours.global_step == 4, "two steps an epoch: four batches, and two"


def test_batches_that_are_not_whole_go_with_the_next_pass() -> None:
    module = Listing()
    with ServerThread(ONE) as server:
        data = DataLoader(Numbered(50), BATCH, drop_last=True)
        trainer(AsyncWANStrategy(server.address), max_epochs=3).fit(module, data)
        assert ledger(server).passes == 2
        assert ledger(server).applied == 3 * 48
    assert {len(batch) for batch in module.batches} == {BATCH}
    assert max(numbers_of(module).values()) == 3
    assert numbers_of(module).total() == 144


def test_a_schedule_by_epochs_sees_epochs() -> None:
    rates = []

    def configure(module: Any) -> Any:
        optimizer = sgd(module, lr=1.0)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    class Rates(Callback):
        def on_train_epoch_start(self, ours: Any, module: Any) -> None:
            rates.append(ours.optimizers[0].param_groups[0]["lr"])

    with ServerThread(RunConfig(local_steps=2, workers=2)) as server:
        trainer(AsyncWANStrategy(server.address), max_epochs=3, callbacks=[Rates()]).fit(Listing(configure), numbered())
    assert rates == [1.0, 0.5, 0.25]


def test_what_another_loses_after_our_last_epoch_is_trained_on_in_one_more() -> None:
    module = Listing()
    with ServerThread(RunConfig(local_steps=2, workers=2)) as server:
        other = Taking(server, module)
        taken = other.take(BATCH)
        ours = trainer(AsyncWANStrategy(server.address, name="ours"), max_epochs=1)
        with other.dying(server):
            ours.fit(module, numbered())
        assert (ledger(server).passes, ledger(server).applied) == (1, SAMPLES)
    assert sorted(module.samples) == list(range(SAMPLES)), "each once"
    assert not set(taken) & set(module.samples[: len(taken)]), "and what the other had at the end"
    assert (ours.current_epoch, ours.max_epochs) == (2, 1), "one more epoch, and as it was asked for afterwards"


def test_who_comes_late_ends_with_the_others() -> None:
    """The other worker is at the second of two passes, so of our two epochs there is one."""
    module = Listing()
    with ServerThread(RunConfig(local_steps=2, workers=2)) as server:
        other = Taking(server, module)
        other.sampler.passes = (0, 2)
        taken = other.take(SAMPLES)
        other.sampler.passes = (1, 2)
        other.take(BATCH)
        thread = threading.Timer(0.0, lambda: (eventually(lambda: len(module.batches) > 0), other.die(server)))
        thread.start()
        ours = trainer(AsyncWANStrategy(server.address), max_epochs=2)
        ours.fit(module, numbered())
        thread.join()
        assert ledger(server).passes == 2
    assert sorted(taken) == list(range(SAMPLES))
    assert max(numbers_of(module).values()) == 2, "what the other had and lost, of both passes"
    assert numbers_of(module).total() == 2 * SAMPLES


def test_samples_drawn_ahead_and_not_trained_on_are_drawn_again() -> None:
    """A loader's processes are asked for batches ahead; the epoch is cut after two."""

    class Cut(Listing):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if self.current_epoch == 0 and batch_idx == 1 else None

    module = Cut()
    with ServerThread(ONE) as server:
        data = DataLoader(Numbered(), BATCH, num_workers=2)
        trainer(AsyncWANStrategy(server.address), max_epochs=2).fit(module, data)
        assert ledger(server).passes == 2
    cut, second = module.samples[:BATCH], module.samples[BATCH:]
    assert cut == list(range(BATCH))
    assert second == [*range(2 * BATCH, SAMPLES), *range(SAMPLES)], "the batch that was cut is done, by the user's will"


def test_a_run_of_so_many_passes_ends_with_them() -> None:
    module = Listing()
    with ServerThread(RunConfig(local_steps=2, epochs=2)) as server:
        trainer(AsyncWANStrategy(server.address), max_epochs=50).fit(module, numbered())
        assert server.coordinator.run.ended == "2 of 2 passes are applied"
    assert module.samples == 2 * list(range(SAMPLES))


@pytest.mark.parametrize("steps", [2, 5])
def test_shares_end_with_such_a_run_too(steps: int) -> None:
    """Also where the last steps are no whole round, and so are sent when nothing more is left."""
    module = Listing()
    with ServerThread(RunConfig(local_steps=steps, epochs=2)) as server:
        ours = trainer(AsyncWANStrategy(server.address), max_steps=1000, max_epochs=-1)
        ours.fit(module, numbered())
        assert server.coordinator.run.ended
    assert module.samples == 2 * list(range(SAMPLES))
    assert ours.current_epoch <= 3


def test_a_share_waits_for_what_others_hold_at_the_end_of_the_run() -> None:
    module = Listing()
    with ServerThread(RunConfig(local_steps=2, workers=2, epochs=1)) as server:
        other = Taking(server, module)
        other.take(BATCH)
        ours = trainer(AsyncWANStrategy(server.address, name="ours"), max_steps=1000, max_epochs=-1)
        with other.dying(server):
            ours.fit(module, numbered())
        assert (ledger(server).passes, ledger(server).applied) == (1, SAMPLES)
    assert sorted(module.samples) == list(range(SAMPLES))
    assert ours.current_epoch <= 4, "it waits between epochs, instead of having empty ones"


def test_a_run_that_is_over_ends_a_fit_that_asked_for_more(caplog: pytest.LogCaptureFixture) -> None:
    with ServerThread(RunConfig(local_steps=5, epochs=1)) as server:
        ours = trainer(AsyncWANStrategy(server.address), min_steps=100, max_steps=1000, max_epochs=-1)
        ours.fit(Listing(), numbered())
        assert server.coordinator.run.ended
    assert (ours.global_step, ours.min_steps) == (STEPS, 100)
    assert "before min_epochs=1 or min_steps=100" in caplog.text


@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument")
@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_a_training_step_that_draws_its_batches_itself_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Drawing(Listing):
        def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
            batch, _, _ = next(dataloader_iter)
            return self.loss(batch[:2])

    with ServerThread(ONE) as server:
        trainer(AsyncWANStrategy(server.address), max_epochs=1).fit(Drawing(), numbered())
        assert not server.coordinator.run.streams
    assert "takes dataloader_iter" in caplog.text


def test_gradients_name_their_samples() -> None:
    module = Listing()
    with ServerThread(RunConfig(submit="gradient", local_steps=1)) as server:
        trainer(AsyncWANStrategy(server.address), max_epochs=2).fit(module, numbered())
        assert (ledger(server).passes, ledger(server).applied) == (2, 2 * SAMPLES)


def test_samples_that_make_nan_twice_are_set_aside_and_the_pass_goes_on() -> None:
    class Spoiled(Listing):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if 11 in self.batches[-1] else loss

    with ServerThread(RunConfig(local_steps=1)) as server:
        trainer(AsyncWANStrategy(server.address), max_epochs=1).fit(Spoiled(), numbered())
        assert ledger(server).passes == 1
        assert [(a, b, c) for a, b, c in ledger(server).aside] == [(0, 8, 16)]
