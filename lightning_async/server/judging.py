"""A filter at work in a run: its states, and the trusted update that the server's owner supplies.

Without a quorum every accepted update is a step of its own, if the filter (aggregation/filters.py) lets it pass; what
does not pass is dropped, as a robust rule drops what it did not keep. In gradient mode each optimizer has a state of
its own, and a gradient of some tensors counts as zero in the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_async.aggregation import Filter, Row, State
from lightning_async.aggregation.filters import Case, Verdict
from lightning_async.errors import ConfigError
from lightning_async.layout import Layout
from lightning_async.server.buffer import Slot, spread
from lightning_async.server.private import Private, Validation
from lightning_async.server.store import Store
from lightning_async.sparse import Sparse

TRUSTED, TRUSTED_AT = "trusted", "trusted_at"


class Judge:
    """The filter of a run over vectors of `layout`, with a state for each of `groups`."""

    def __init__(self, chosen: Filter, layout: Layout, groups: int, private: Private) -> None:
        self._filter, self._layout, self._validation = chosen, layout, private.validation
        self._states: list[State] = [chosen.init(private.secret) for _ in range(groups)]
        self._sizes = [entry.size for entry in layout.parameters]
        self.trouble = ""  # why nothing can be judged now
        self._asks = True  # whether an update has come since

    def enough(self, voters: Sequence[str]) -> bool:
        """Whether the filter's condition on the number of workers holds."""
        return len(voters) >= self._filter.demand.least

    def ready(self, group: int, voters: Sequence[str]) -> bool:
        """Whether updates can be judged one by one; until then the filter's start makes the steps."""
        ready = self._filter.ready
        return ready is None or ready(voters, self._states[group])

    def watch(self, store: Store, voters: Sequence[str]) -> None:
        """A version has been made (or is there at the start)."""
        if self._filter.watch is not None:
            for group, state in enumerate(self._states):
                self._states[group] = self._filter.watch(store.version, store.parameters, voters, state)
        if self._filter.every and TRUSTED not in self._states[0]:
            self._trust(store)  # at the start, so that a function that cannot work is found out then

    def note(self, group: int, slot: Slot, store: Store) -> None:
        """An update has come in."""
        self._asks = True
        if self._filter.note is not None:
            self._states[group] = self._filter.note(self._case(slot, store, ()), self._states[group])

    def judge(self, group: int, slot: Slot, store: Store, voters: Sequence[str]) -> Verdict | None:
        """Whether what waits in this slot makes a step; None, and `trouble`, while the owner's function fails."""
        if self._filter.every and store.version >= int(self._states[0][TRUSTED_AT]) + self._filter.every:
            self._renew(store)
        if self.trouble:
            return None
        verdict, self._states[group] = self._filter.judge(self._case(slot, store, voters), self._states[group])
        return verdict

    def dump(self) -> tuple[list[list[str]], dict[str, Tensor]]:
        """(keys of each state, tensors by number of group and key)."""
        named = [(f"filter/{group}/{key}", v) for group, state in enumerate(self._states) for key, v in state.items()]
        return [list(state) for state in self._states], {name: value.clone() for name, value in named}

    def restore(self, keys: Sequence[Sequence[str]], tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `dump` gave."""
        self._states = [{key: tensors[f"filter/{i}/{key}"] for key in own} for i, own in enumerate(keys)]

    def _case(self, slot: Slot, store: Store, voters: Sequence[str]) -> Case:
        everything = tuple(range(len(self._sizes)))
        whole = slot.present is None or slot.present == everything
        update = _dense(slot.vector if whole else spread(slot, everything, self._sizes))
        trusted = self._states[0].get(TRUSTED)
        if trusted is not None and slot.present is not None and not whole:
            trusted = trusted.clone()
            for i, entry in enumerate(self._layout.parameters):
                if i not in slot.present:
                    trusted[entry.range] = 0.0
        return Case(slot.worker, update, slot.base, store.version, voters, trusted)

    def _renew(self, store: Store) -> None:
        """Ask the owner's function, which may fail: then again when the next update is there."""
        if self.trouble and not self._asks:
            return
        try:
            self._trust(store)
            self.trouble = ""
        except ConfigError as error:
            self.trouble, self._asks = str(error), False

    def _trust(self, store: Store) -> None:
        assert self._validation is not None
        vector = trusted_update(self._validation, store)
        self._states[0] = {**self._states[0], TRUSTED: vector, TRUSTED_AT: torch.tensor(store.version)}


def trusted_update(validation: Validation, store: Store) -> Tensor:
    """float32 [d] of what the owner's function gives now. Raises ConfigError for anything that cannot be used."""
    layout = store.layout
    given = {e.name: store.parameters[e.range].view(e.shape).clone() for e in layout.parameters}
    given |= {e.name: store.buffers[e.range].view(e.shape).clone() for e in layout.buffers}
    try:
        with torch.enable_grad():
            made = validation(given)
        parts = [made[entry.name].detach().to("cpu", torch.float32) for entry in layout.parameters]
    except Exception as error:
        raise ConfigError(f"the validation function failed: {type(error).__name__}: {error}") from error
    for entry, part in zip(layout.parameters, parts, strict=True):
        if tuple(part.shape) != tuple(entry.shape) or not bool(torch.isfinite(part).all()):
            raise ConfigError(
                f"the validation function gave {tuple(part.shape)} for {entry.name!r}, expected {tuple(entry.shape)}, "
                "all finite"
            )
    return torch.cat([part.flatten() for part in parts])


def _dense(row: Row) -> Tensor:
    return row.dense() if isinstance(row, Sparse) else row
