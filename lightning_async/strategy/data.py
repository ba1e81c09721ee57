"""Give a worker its share of the data: the sampler of a map-style DataLoader is replaced by a lease sampler.

It happens where Lightning would put a DistributedSampler, in place (`batch_sampler.sampler` is an ordinary attribute),
and is undone at the end. Loaders whose order the user has made (own samplers, batch samplers) and iterable data are
left alone, with one warning that says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler

from lightning_async.worker import Engine, LeaseSampler

log = logging.getLogger("lightning_async")


class SharedSampler(Sampler[int]):
    """Leases while the engine is armed; the user's own order, cut to the same length, during a tuner's trials."""

    def __init__(self, leases: LeaseSampler, own: Sampler[int], engine: Engine) -> None:
        self._leases, self._own, self._engine = leases, own, engine

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[int]:
        if self._engine.armed:
            yield from self._leases
        else:
            for index, _ in zip(self._own, range(len(self)), strict=False):
                yield index


class Shares:
    """The loaders of one fit that were changed; `restore` undoes it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._restore: list[Callable[[], None]] = []
        self._seen: dict[int, Any] = {}

    def take(self, loader: Any) -> None:
        """Make `loader` yield this worker's share, once; say so where it cannot."""
        if id(loader) in self._seen:
            return
        stream = f"train-{len(self._seen)}"
        self._seen[id(loader)] = loader
        obstacle = _obstacle(loader)
        if obstacle:
            log.warning(
                "%s: every worker trains on its own order of all the data it gets. "
                'Split it by hand, or pass data="own" to AsyncWANStrategy if that is what you want',
                obstacle,
            )
            return
        batches = loader.batch_sampler
        own, length = batches.sampler, len(loader.dataset)
        shuffle = isinstance(own, RandomSampler)
        leases = LeaseSampler(self._engine, stream, length, loader.batch_size or 1, shuffle)
        batches.sampler = SharedSampler(leases, own, self._engine)
        self._restore.append(lambda: setattr(batches, "sampler", own))

    def restore(self) -> None:
        """Give every loader its own sampler back. Idempotent."""
        for undo in reversed(self._restore):
            undo()
        self._restore.clear()
        self._seen.clear()


def _obstacle(loader: Any) -> str:
    """Why the samples of `loader` cannot be leased; empty when they can."""
    if not isinstance(loader, DataLoader):
        return f"the training data is a {type(loader).__name__}, not a DataLoader"
    if not isinstance(loader.batch_sampler, BatchSampler):
        return "the training data is iterable, so its samples have no index"
    if type(loader.batch_sampler) is not BatchSampler:
        return f"the DataLoader has its own batch sampler {type(loader.batch_sampler).__name__}"
    sampler = loader.batch_sampler.sampler
    if isinstance(sampler, RandomSampler) and (sampler.replacement or sampler.num_samples != len(loader.dataset)):  # type: ignore[arg-type]
        return "the DataLoader samples with replacement or a number of its own"
    if type(sampler) not in (SequentialSampler, RandomSampler):
        return f"the DataLoader has its own sampler {type(sampler).__name__}"
    return ""


def samples_in(batch: Any) -> int:
    """The length of the first tensor's first dimension; 1 where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return next((n for n in map(samples_in, parts) if n > 1), 1)
