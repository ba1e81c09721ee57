"""Give a worker its share of the data: the sampler of a map-style DataLoader is replaced by a lease sampler.

It happens where Lightning would put a DistributedSampler, in place (`batch_sampler.sampler` is an ordinary attribute),
and is undone at the end. Loaders whose order the user has made (own samplers, batch samplers) and iterable data are
left alone, with one warning that says so.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler

from lightning_async.worker import Engine, LeaseSampler, quota

log = logging.getLogger("lightning_async")


Epoch: TypeAlias = Callable[[], tuple[int, int]]  # the number of the epoch that begins, and of how many


@dataclass(frozen=True)
class Run:
    """The run as far as its data goes. `engine` is None before the worker has joined."""

    engine: Callable[[], Engine | None]
    workers: Callable[[], int]


class SharedSampler(Sampler[int]):
    """Leases while the engine is armed; the user's own order, cut to the same length, during a tuner's trials.

    Its length is the worker's quota, known before the worker joins: schedulers are made from it. With `passes` an epoch
    is a pass of the run instead, and the length only what is expected.
    """

    def __init__(
        self, run: Run, stream: str, own: Sampler[int], length: int, batch_size: int, whole: bool, times: int = 1
    ) -> None:
        self._run, self._stream = run, stream
        self._length = length
        self.adopt(own, batch_size, whole)
        self.passes: Epoch | None = None
        self.times = times  # how often its loader is iterated at once
        self._quota = quota(length, run.workers())
        self._leases: LeaseSampler | None = None
        self.trial = False  # whether the iterator made last is the user's own

    def adopt(self, own: Sampler[int], batch_size: int, whole: bool) -> None:
        """The loader was made anew, perhaps with other batches: the samples go on where they are."""
        self._own, self._batch_size, self._whole = own, batch_size, whole

    def __len__(self) -> int:
        return self._quota

    def __iter__(self) -> Iterator[int]:
        engine = self._run.engine()
        self.trial = engine is None or not engine.armed
        if engine is None or not engine.armed:
            return itertools.islice(iter(self._own), self._quota)
        if self._leases is None:
            shuffle = isinstance(self._own, RandomSampler)
            self._leases = LeaseSampler(
                engine, self._stream, self._length, self._batch_size, shuffle, self._quota, self._whole
            )
        self._leases.batch_size, self._leases.whole = self._batch_size, self._whole
        self._leases.passes = None if self.passes is None else self.passes()
        return iter(self._leases)

    @property
    def leases(self) -> LeaseSampler | None:
        """What is being iterated; None during a trial."""
        return None if self.trial else self._leases


class Shares:
    """The loaders of one fit that were changed; `restore` undoes it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._changed: dict[int, tuple[Any, Any, SharedSampler]] = {}  # by id: batch sampler, its own sampler, ours
        self._samplers: dict[tuple[str, int], SharedSampler] = {}
        self._seen: dict[int, Any] = {}
        self._warned = self._early = False

    def renew(self) -> None:
        """The training loaders are about to be made (again): they get the streams of the ones before them."""
        self.restore()
        self._seen.clear()

    def take(self, loader: Any, passes: Epoch | None = None, obstacle: str = "") -> None:
        """Make `loader` yield this worker's share, once; say so where it cannot.

        `passes`: the epoch, where nothing depends on how long one is, so that it can be a pass of the run. Several
        loaders have shares, and so has one that was asked for before the worker joined: schedules come of its length.
        """
        self._early = self._early or self._run.engine() is None
        if id(loader) in self._seen:
            for _, _, sampler in self._changed.values():
                sampler.passes = None
            batches = loader.batch_sampler
            if id(batches) in self._changed:
                self._changed[id(batches)][2].times += 1
            return
        stream = f"train-{len(self._seen)}"
        self._seen[id(loader)] = loader
        obstacle = obstacle or _obstacle(loader)
        if obstacle:
            self._warn(obstacle)
            return
        batches = loader.batch_sampler
        own, key, how = batches.sampler, (stream, len(loader.dataset)), (loader.batch_size or 1, loader.drop_last)
        if key not in self._samplers:
            self._samplers[key] = SharedSampler(self._run, stream, own, key[1], *how)
        sampler = batches.sampler = self._samplers[key]
        sampler.adopt(own, *how)
        self._changed[id(batches)], sampler.times = (batches, own, sampler), 1
        for _, _, other in self._changed.values():
            other.passes = None if self._early or len(self._seen) > 1 else passes

    def hand_over(self) -> None:
        """A batch begins, of each loader that has one."""
        for sampler in self._leasing():
            for _ in range(sampler.times):
                if sampler.leases is not None:
                    sampler.leases.hand_over()

    @property
    def open(self) -> LeaseSampler | None:
        """The leases of the one loader whose epochs are passes; None where they are shares."""
        found = [sampler.leases for sampler in self._leasing() if sampler.passes is not None]
        return found[0] if found else None

    @property
    def through(self) -> LeaseSampler | None:
        """The leases of a loader for which nothing more was left, if there is one."""
        return next((s.leases for s in self._leasing() if s.leases is not None and s.leases.through), None)

    def _leasing(self) -> list[SharedSampler]:
        return [sampler for _, _, sampler in self._changed.values() if sampler.leases is not None]

    def _warn(self, obstacle: str) -> None:
        if not self._warned:
            log.warning(
                "%s: every worker trains on its own order of all the data it gets. "
                'Split it by hand, or pass data="own" to AsyncWANStrategy if that is what you want',
                obstacle,
            )
        self._warned = True

    @property
    def on_trial(self) -> bool:
        """Whether a loader is being iterated that yields the user's own order: its iterator was made too early."""
        return any(sampler.trial for _, _, sampler in self._changed.values())

    def restore(self) -> None:
        """Give every loader its own sampler back. Idempotent."""
        for batches, own, _ in self._changed.values():
            batches.sampler = own
        self._changed.clear()


def _obstacle(loader: Any) -> str:
    """Why the samples of `loader` cannot be leased; empty when they can."""
    if not isinstance(loader, DataLoader):
        return f"the training data is a {type(loader).__name__}, not a DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return "the training data is iterable, so its samples have no index"
    if not getattr(loader, "in_order", True):
        return "the DataLoader gives its batches in any order (in_order=False), so nobody knows what is in one"
    if loader.batch_sampler is None:
        return "the DataLoader makes no batches (batch_size=None)"
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
