"""How updates become the next version: quorum -> aggregator -> outer optimizer -> publish.

Update mode has one group of slots and the configured outer optimizer; with fragments, both for each piece of the model.
Gradient mode has a group per optimizer of the user's, whose torch optimizer steps over views of the true parameters.
Float buffers travel as values: the version's buffers move towards the mean of those that came, by the share of the live
workers that sent them, so that a variance stays a variance and a single worker's statistics are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_async.aggregation import Row
from lightning_async.aggregation.filters import Verdict
from lightning_async.config import RunConfig
from lightning_async.errors import PayloadError
from lightning_async.layout import Layout
from lightning_async.outer import Update, torch_outers
from lightning_async.server.admission import NORM_FACTOR, Refusal, check_norm, first_parameters
from lightning_async.server.buffer import Buffer, Slot, mixed, union
from lightning_async.server.combining import alone, combined
from lightning_async.server.grace import worth_waiting
from lightning_async.server.judging import Judge
from lightning_async.server.members import Member
from lightning_async.server.moving import Mover
from lightning_async.server.norms import Norms
from lightning_async.server.reputation import Review
from lightning_async.server.rules import Rules
from lightning_async.server.store import Store
from lightning_async.wire.frames import Frame
from lightning_async.wire.messages import Push, Reason


@dataclass(frozen=True)
class Made:
    """What a version was made of, and how that lay to it; `dropped` says why it made none."""

    group: int
    slots: list[Slot]
    ages: tuple[int, ...]
    review: Review
    dropped: str = ""


class Stepper:
    """The parameters of a run and everything that moves them.

    Args:
        optimizers: in gradient mode the records of `outer.describe`, one a group; ignored in update mode.
        payload: first parameters float32 [d] and buffers float32 [b]. PayloadError when they do not fit.
    """

    def __init__(
        self, config: RunConfig, rules: Rules, layout: Layout, optimizers: Sequence[Any], payload: Sequence[Frame]
    ) -> None:
        self._config, self._rules = config, rules
        self.sizes = [entry.size for entry in layout.parameters]
        self.pieces = layout.fragments(config.fragments)
        self.store = Store(layout, rules.download, self.pieces)
        self.store.start(*first_parameters(payload, layout))
        self.optimizers = list(optimizers)
        views = {entry.name: self.store.parameters[entry.range].view(entry.shape) for entry in layout.parameters}
        self._torch = torch_outers(optimizers, views) if config.submit == "gradient" else []
        update_mode = config.submit == "update"
        self._mover = Mover(rules.outer, layout, self.pieces, config.workers) if update_mode else None
        self.aggregator_state: dict[int, dict[str, Tensor]] = {}
        self.waiting = [Buffer() for _ in range(self.groups)]
        self.norms = [Norms() for _ in range(self.groups)]
        self.judge = None if rules.filter is None else Judge(rules.filter, layout, self.groups, rules.private)
        if self.judge is not None:
            self.judge.watch(self.store, ())

    def go_on(self, config: RunConfig, rules: Rules) -> None:
        """From now on by these, which differ from the last ones in what no state depends on."""
        self._config, self._rules = config, rules

    @property
    def groups(self) -> int:
        """Independent streams of updates: 1, or the fragments, or in gradient mode the user's optimizers."""
        return len(self._torch) if self._config.submit == "gradient" else self._config.fragments

    def age(self, base: int) -> int:
        """The staleness of what began from version `base`, in versions. With fragments in versions of its own piece, of
        which every so-many-th is one."""
        return (self.store.version - base) // self._config.fragments

    def _ages(self, slots: Sequence[Slot]) -> tuple[int, ...]:
        return tuple(self.age(slot.base) for slot in slots)

    def present(self, push: Push) -> tuple[int, ...] | None:
        """The tensors that an update is of; None for all."""
        if self.pieces:
            return self.pieces[push.group]
        return None if push.present is None else tuple(push.present)

    @property
    def trouble(self) -> str:
        """Why what waits cannot be judged now; else empty."""
        return "" if self.judge is None else self.judge.trouble

    def check_norm(self, group: int, worker: str, vector: Row) -> Refusal | None:
        """Refuse an update that is far longer than the last ones of its group; remember its norm otherwise."""
        norms = self.norms[group]
        norm = check_norm(vector, norms.usual)
        if isinstance(norm, Refusal):
            return norm
        norms.note(worker, norm)
        return None

    def note_refused(self, group: int, worker: str, reason: Reason) -> None:
        """An update was refused. A run whose steps grow for good gets beyond the usual norm, step by step."""
        if reason is Reason.NORM:
            norms = self.norms[group]
            norms.note(worker, NORM_FACTOR * norms.smallest(worker))

    def check_hyper(self, group: int, hyper: Sequence[Any]) -> Refusal | None:
        """Refuse a report of hyperparameters that no optimizer of this run could have made."""
        if not self._torch:
            return Refusal(Reason.PROTOCOL, "hyperparameters for a run of updates") if hyper else None
        try:
            self._torch[group].check_report(hyper)
        except PayloadError as error:
            return Refusal(Reason.PROTOCOL, str(error))
        return None

    def add(self, group: int, slot: Slot) -> None:
        """Let an accepted update wait in its worker's slot."""
        if self.judge is not None:
            self.judge.note(group, slot, self.store)
        self.waiting[group].add(slot, self.sizes)

    def need(self, live: Sequence[Member]) -> int:
        """Distinct workers that make a step."""
        quorum = self._config.quorum
        return max(len(live) if quorum == "all" else quorum or 1, self._rules.smallest)

    def step(self, group: int, live: Sequence[Member], now: float, last: bool = False) -> Made | None:
        """Make the next version when the group's quorum and grace allow it; else None. `live`: who may vote.

        `last`: nobody is left who could complete a quorum, so the mean takes what waits. A robust rule does not, nor
        does a gradient whose learning rate no live worker reports any more.
        """
        if self.judge is not None:
            return self._filtered(self.judge, group, live)
        taken = not self._rules.robust and (self._config.submit == "update" or len(live) > 0)
        leftover = last and taken and len(self.waiting[group]) > 0
        if not leftover and not self._ready(self.waiting[group], live, now):
            return None
        return self._made(group, list(self.waiting[group]), live)

    def _filtered(self, judge: Judge, group: int, live: Sequence[Member]) -> Made | None:
        """The next update that waits, judged by itself; before the filter is ready, a step of its start."""
        waiting, voters = self.waiting[group], [member.name for member in live]
        ready = judge.ready(group, voters)
        if not judge.enough(voters) or len(waiting) < (1 if ready else self._rules.aggregator.smallest):
            return None
        slots = list(waiting)[:1] if ready else list(waiting)
        verdict = judge.judge(group, slots[0], self.store, voters) if ready else None
        if judge.trouble:
            return None
        if verdict is not None and not verdict.passed:
            waiting.remove(slots)
            return Made(group, slots, self._ages(slots), Review.of(verdict), verdict.why)
        made = self._made(group, slots, live, verdict)
        judge.watch(self.store, voters)
        return made

    def _made(self, group: int, slots: list[Slot], live: Sequence[Member], verdict: Verdict | None = None) -> Made:
        """The next version, from these slots; with a verdict, from the one that passed. They wait until they are
        aggregated: an error in that loses none. An aggregate that cannot be stepped along makes none.

        Rows are in the order of the workers' names: who came first decides no tie, and not the last bit of a sum."""
        slots = sorted(slots, key=lambda slot: slot.worker)
        present, rows = union(slots, self.sizes)
        ages = self._ages(slots)
        if verdict is None:
            update, seen = self._aggregate(group, slots, rows, ages)
        else:
            update, seen = alone(self._rules, rows[0], ages[0], verdict.factor), Review.of(verdict)
        self.waiting[group].remove(slots)
        try:
            self._advance(group, update, present, live)
        except PayloadError as error:  # before anything has moved
            return Made(group, slots, ages, Review(), str(error))
        self.store.buffers = mixed(self.store.buffers, slots, self._rules.robust, len(live))
        return Made(group, slots, ages, seen)

    def _advance(self, group: int, update: Update, present: Sequence[int], live: Sequence[Member]) -> None:
        """Step along `update`. Raises PayloadError for one that is not finite; nothing has changed then."""
        mover = self._mover
        if mover is not None:
            self.store.advance(lambda parameters: mover.move(group, parameters, update), group)
            return
        vector = update.vector if update.scale == 1.0 else update.vector.mul(update.scale)
        gradients = self._named(vector, present)
        hyper = [member.hyper[group] for member in live if group in member.hyper]
        self.store.advance(lambda parameters: self._torch[group].step(gradients, hyper))

    def _ready(self, waiting: Buffer, live: Sequence[Member], now: float) -> bool:
        here = {slot.worker for slot in waiting}
        everybody = all(member.name in here for member in live)
        if len(here) < self.need(live) or (self._config.quorum == "all" and not everybody):
            return False
        waiting.complete_at = now if waiting.complete_at is None else waiting.complete_at
        return everybody or not self._grace(waiting, [m for m in live if m.name in here], live, now)

    def _grace(self, waiting: Buffer, here: Sequence[Member], live: Sequence[Member], now: float) -> bool:
        """Whether a complete quorum still waits for more."""
        grace = self._config.grace_s
        if grace != "auto":
            return waiting.complete_at is not None and now - waiting.complete_at < grace
        return worth_waiting(here, [member for member in live if member not in here], now)

    def _aggregate(
        self, group: int, slots: Sequence[Slot], rows: Sequence[Row], ages: Sequence[int]
    ) -> tuple[Update, Review]:
        """What the rule makes of the slots, and how they lie to it."""
        state = self.aggregator_state.get(group)
        outcome, update, seen = combined(self._rules, slots, rows, ages, state)
        self.aggregator_state[group] = outcome.state
        return update, seen

    def _named(self, vector: Tensor, present: Sequence[int]) -> dict[str, Tensor]:
        entries = [self.store.layout.parameters[i] for i in present]
        parts = torch.split(vector, [entry.size for entry in entries])
        return {entry.name: part.view(entry.shape) for entry, part in zip(entries, parts, strict=True)}

    def state(self) -> dict[str, Tensor]:
        """The optimizer state by name, for a checkpoint."""
        moving = {} if self._mover is None else self._mover.state()
        return {f"outer/{key}": value for key, value in moving.items()} | {
            f"{i}/{path}": value for i, outer in enumerate(self._torch) for path, value in outer.state().items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave. Raises PayloadError for what does not fit; nothing is changed then."""
        parts = self._parts(state)
        for index, outer in enumerate(self._torch):
            outer.check_state(parts.get(str(index), {}))
        if self._mover is not None:
            self._mover.check(parts.get("outer", {}))
            self._mover.load(parts.get("outer", {}))
        for index, outer in enumerate(self._torch):
            outer.load(parts.get(str(index), {}))

    def _parts(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The state by owner: "outer", or an optimizer's number."""
        known = {*map(str, range(len(self._torch)))} if self._torch else {"outer"}
        parts: dict[str, dict[str, Tensor]] = {}
        for path, value in state.items():
            owner, _, rest = path.partition("/")
            if owner not in known:
                raise PayloadError(
                    f"outer state {path[:80]!r} belongs to nothing in a run that submits by {self._config.submit}"
                )
            parts.setdefault(owner, {})[rest] = value
        return parts
