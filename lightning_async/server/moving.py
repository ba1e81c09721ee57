"""The configured outer optimizer over the true parameters: one for the whole, or with fragments one for each piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_async.errors import PayloadError
from lightning_async.layout import Layout
from lightning_async.outer import Outer, State, Update, bind


class Mover:
    """Moves parameters [d] of `layout`, or those of one of its `pieces`, by steps of `outer`."""

    def __init__(self, outer: Outer, layout: Layout, pieces: Sequence[tuple[int, ...]], workers: int) -> None:
        self._layout, self._pieces = layout, pieces
        sizes = [entry.size for entry in layout.parameters]
        parts = [[sizes[i] for i in piece] for piece in pieces] or [sizes]
        self._lengths = [sum(part) for part in parts]
        self._outers = [bind(outer, part, workers) for part in parts]
        self._states: list[State] = [each.init(n) for each, n in zip(self._outers, self._lengths, strict=True)]

    def move(self, group: int, parameters: Tensor, update: Update) -> None:
        """Move `parameters` in place along the update of a group. PayloadError, and nothing done, if not finite."""
        outer, state = self._outers[group], self._states[group]
        if not self._pieces:
            self._states[group] = outer.step(parameters, update, state)
            return
        part = self._layout.part(parameters, self._pieces[group])
        self._states[group] = outer.step(part, update, state)
        self._layout.spread(part, self._pieces[group], parameters)

    def state(self) -> dict[str, Tensor]:
        """The state by name; with fragments each name begins with the piece's number."""
        return {self._prefix(i) + key: value for i, state in enumerate(self._states) for key, value in state.items()}

    def _prefix(self, group: int) -> str:
        return f"{group}/" if self._pieces else ""

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Raises PayloadError for a state that `state` did not give."""
        known = {self._prefix(i) for i in range(len(self._outers))}
        strange = [key for key in state if self._pieces and key.partition("/")[0] + "/" not in known]
        if strange:
            raise PayloadError(f"outer state {strange[0][:80]!r} is of no fragment; this run has {len(self._pieces)}")
        for group, outer in enumerate(self._outers):
            outer.check_state(self._own(state, group), self._lengths[group])

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave, after `check`."""
        for group in range(len(self._outers)):
            self._states[group] |= {key: value.clone() for key, value in self._own(state, group).items()}

    def _own(self, state: Mapping[str, Tensor], group: int) -> dict[str, Tensor]:
        prefix = self._prefix(group)
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
