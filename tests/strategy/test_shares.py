"""Each worker trains on its own samples; what cannot be shared is left alone, and afterwards all is as it was."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Any

import pytest
import torch
from eventually import ENOUGH_S
from lightning.pytorch.utilities import CombinedLoader
from models import BATCH, SAMPLES, STEPS, Checked, Net, Numbered, loader, sgd, trainer
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from lightning_async import AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.errors import RefusedError
from lightning_async.server import ServerThread


class Listing(Net):
    """Remembers which samples it was given, batch by batch."""

    def __init__(self, configure: Any = None) -> None:
        super().__init__(configure)
        self.batches: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        first = batch[0] if isinstance(batch[0], (list, tuple)) else batch
        self.batches.append(torch.as_tensor(first[2]).reshape(-1).tolist())
        return self.loss(first[:2])

    @property
    def samples(self) -> list[int]:
        return [index for batch in self.batches for index in batch]


def numbered(length: int = SAMPLES, **options: Any) -> DataLoader[Any]:
    return DataLoader(Numbered(length), **{"batch_size": BATCH, **options})


def train(data: Any, module: Any = None, config: dict[str, Any] | None = None, **options: Any) -> Any:
    """Fit against a server; the module."""
    module = module or Listing()
    with ServerThread(RunConfig(**{"local_steps": 2, **(config or {})})) as server:
        trainer(AsyncWANStrategy(server.address), **options).fit(module, data)
    return module


@pytest.mark.parametrize("shuffle", [False, True])
def test_two_workers_train_on_each_sample_of_each_pass_once(shuffle: bool) -> None:
    both = threading.Barrier(2, timeout=ENOUGH_S)

    class Meeting(Listing):
        """Begins when the other one is there too."""

        def on_train_start(self) -> None:
            both.wait()

    modules = [Meeting(), Meeting()]
    with ServerThread(RunConfig(local_steps=2, workers=2)) as server:
        trainers = [trainer(AsyncWANStrategy(server.address), max_epochs=2) for _ in modules]
        threads = [
            threading.Thread(target=t.fit, args=(m, numbered(shuffle=shuffle)), daemon=True)
            for t, m in zip(trainers, modules, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ledger = server.coordinator.run.streams["train-0"].state()
    seen = Counter(index for module in modules for index in module.samples)
    assert seen == Counter(dict.fromkeys(range(SAMPLES), 2))
    assert (ledger["passes"], ledger["applied"], ledger["leased"], ledger["free"]) == (2, 2 * SAMPLES, 0, 0)


def test_one_worker_covers_every_pass_exactly_once_in_another_order() -> None:
    module = train(numbered(shuffle=True), max_epochs=3)
    passes = [module.samples[i : i + SAMPLES] for i in range(0, 3 * SAMPLES, SAMPLES)]
    assert all(sorted(one) == list(range(SAMPLES)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_the_quota_is_known_before_the_worker_joins() -> None:
    """A schedule over `estimated_stepping_batches` asks for the loader in configure_optimizers."""
    asked = []

    def configure(module: Any) -> Any:
        asked.append(module.trainer.estimated_stepping_batches)
        return sgd(module)

    module = train(numbered(), Listing(configure), {"workers": 3})
    assert asked == [2 * STEPS // 3]
    assert module.samples == list(range(2 * SAMPLES // 3)), "leased, from the first epoch on"


def test_a_loader_with_processes_that_was_asked_for_early_leases_too() -> None:
    """Its iterator draws ahead as soon as it is made, which is before steps count."""
    module = train(numbered(num_workers=1), Listing(one_cycle_steps), {"workers": 2}, max_epochs=2)
    assert module.samples == list(range(SAMPLES))


def one_cycle_steps(module: Any) -> Any:
    assert module.trainer.estimated_stepping_batches == STEPS
    return sgd(module)


def test_fractions_of_an_epoch() -> None:
    module = Checked()
    with ServerThread(RunConfig(local_steps=2, workers=2)) as server:
        ours = trainer(AsyncWANStrategy(server.address), limit_train_batches=0.7, val_check_interval=0.5, max_epochs=1)
        ours.fit(module, loader(96), loader(16))
    assert ours.global_step == 4  # 12 batches, 6 of them ours, 70 %
    assert len(module.validated) == 2


def test_overfitting_repeats_the_same_batches() -> None:
    module = train(numbered(), overfit_batches=2, max_epochs=3)
    assert module.samples == list(range(2 * BATCH)) * 3


def test_loaders_made_anew_each_epoch_go_on_in_their_stream() -> None:
    class Renewing(Listing):
        def train_dataloader(self) -> Any:
            return numbered(SAMPLES)

    module = Renewing()
    with ServerThread(RunConfig(local_steps=2, workers=2)) as server:
        trainer(AsyncWANStrategy(server.address), reload_dataloaders_every_n_epochs=1, max_epochs=20).fit(module)
        assert list(server.coordinator.run.streams) == ["train-0"]
    assert module.samples == list(range(SAMPLES)) * 20


def test_one_loader_twice_in_a_combined_loader() -> None:
    data = numbered()
    sampler = data.batch_sampler.sampler
    module = train(CombinedLoader([data, data], "min_size"), max_epochs=1)
    assert len(module.batches) == STEPS
    assert data.batch_sampler.sampler is sampler


def test_two_loaders_have_a_stream_each() -> None:
    with ServerThread(RunConfig(local_steps=2)) as server:
        both = CombinedLoader([numbered(), numbered(SAMPLES * 2)], "min_size")
        trainer(AsyncWANStrategy(server.address), max_epochs=1).fit(Listing(), both)
        assert {name: s.length for name, s in server.coordinator.run.streams.items()} == {"train-0": 48, "train-1": 96}


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from (Numbered()[i] for i in range(SAMPLES))


class Plain:
    def __iter__(self) -> Any:
        return iter(numbered())


class Backwards(SequentialSampler):
    def __iter__(self) -> Any:
        return iter(range(len(self.data_source) - 1, -1, -1))


ALONE = {
    "iterable": (lambda: DataLoader(Endless(), BATCH), "iterable"),
    "own sampler": (lambda: numbered(sampler=Backwards(Numbered())), "own sampler Backwards"),
    "subset": (lambda: numbered(sampler=RandomSampler(Numbered(), num_samples=16)), "a number of its own"),
    "replacement": (lambda: numbered(sampler=RandomSampler(Numbered(), replacement=True)), "replacement"),
    "own batches": (
        lambda: DataLoader(Numbered(), batch_sampler=Batches(SequentialSampler(Numbered()), BATCH, False)),
        "own batch sampler Batches",
    ),
    "no batches": (lambda: DataLoader(Numbered(), batch_size=None), "batch_size=None"),
    "in any order": (lambda: numbered(num_workers=1, in_order=False), "in any order"),
    "no DataLoader": (lambda: Plain(), "a Plain, not a DataLoader"),
}


class Batches(BatchSampler):
    """The user's."""


@pytest.mark.parametrize(("data", "said"), ALONE.values(), ids=ALONE)
def test_what_cannot_be_shared_is_left_alone_with_one_warning(data: Any, said: str, caplog: Any) -> None:
    with ServerThread(RunConfig(local_steps=2)) as server, caplog.at_level(logging.WARNING, "lightning_async"):
        ours = trainer(AsyncWANStrategy(server.address), max_epochs=2, reload_dataloaders_every_n_epochs=1)
        module = Listing()
        module.train_dataloader = data
        ours.fit(module)
        assert not server.coordinator.run.streams
    warnings = [record.message for record in caplog.records if "own order" in record.message]
    assert len(warnings) == 1
    assert said in warnings[0]
    assert 'data="own"' in warnings[0]


@pytest.mark.parametrize(
    ("given", "options"), [({"data": "own"}, {}), ({}, {"use_distributed_sampler": False})], ids=["own", "no sampler"]
)
def test_own_data_is_neither_shared_nor_warned_about(given: Any, options: Any, caplog: Any) -> None:
    module = Listing()
    with ServerThread(RunConfig(local_steps=2, workers=2)) as server:
        trainer(AsyncWANStrategy(server.address, **given), max_epochs=1, **options).fit(module, numbered())
        assert not server.coordinator.run.streams
    assert module.samples == list(range(SAMPLES))
    assert "own order" not in caplog.text


def test_a_subset_is_a_data_set_like_any_other() -> None:
    part = DataLoader(Subset(Numbered(), range(16, 32)), BATCH)
    assert train(part, max_epochs=1).samples == list(range(16, 32))


def test_samplers_are_restored_also_after_an_error() -> None:
    class Broken(Listing):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("broken")

    data = numbered(shuffle=True)
    sampler = data.batch_sampler.sampler
    with pytest.raises(RuntimeError, match="broken"):
        train(data, Broken())
    assert data.batch_sampler.sampler is sampler
    train(data)
    assert data.batch_sampler.sampler is sampler


def test_another_data_set_than_the_runs_is_refused() -> None:
    with ServerThread(RunConfig(local_steps=2)) as server:
        trainer(AsyncWANStrategy(server.address), max_epochs=1).fit(Listing(), numbered())
        with pytest.raises(RefusedError, match=r'16 samples; this run shares one of 48.*data="own"'):
            trainer(AsyncWANStrategy(server.address), max_epochs=1).fit(Listing(), numbered(16))


def test_samples_are_counted_as_they_are_trained() -> None:
    with ServerThread(RunConfig(local_steps=2)) as server:
        trainer(AsyncWANStrategy(server.address), max_epochs=2).fit(Net(), loader())
        assert sum(member.samples for member in server.coordinator.run.members) == 2 * SAMPLES
    assert torch.is_grad_enabled()
