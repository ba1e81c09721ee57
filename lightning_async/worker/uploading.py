"""The upload codec of one worker with its states: encode, take a refused payload back, and move along the ladder.

In update mode there is one state, or one for each piece. In gradient mode each optimizer and each set of present
tensors has its own, because a residual belongs to the tensors it was left over from; MOST_STATES are kept, and of more
sets than that the one that was not seen for longest starts anew.

Rule of this file: it belongs to the courier's thread.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from lightning_async.codecs import Codec, Payload, State, bind
from lightning_async.codecs.feedback import RESIDUAL
from lightning_async.layout import Layout
from lightning_async.wire.messages import Push
from lightning_async.worker.choosing import Chooser, Uploaded

Tensors: TypeAlias = tuple[int, tuple[int, ...] | None]

MOST_STATES = 32
log = logging.getLogger(__name__)


class Uploads:
    """Updates of `layout`, or of some of its tensors, as payloads of `codec`. `pieces`: of a run with fragments."""

    def __init__(self, codec: Codec, layout: Layout, pieces: Sequence[tuple[int, ...]] = ()) -> None:
        self._codec, self._layout, self._pieces = codec, layout, pieces
        self.states: OrderedDict[Tensors, State] = OrderedDict()
        self._chooser: Chooser | None = None

    def encode(self, push: Push, vector: Tensor) -> Payload:
        """The payload of `vector`. Raises ConfigError for one that is not finite; the state is then as it was."""
        codec, tensors = self._bound(push), _tensors(push)
        state = self.states.pop(tensors) if tensors in self.states else codec.init(vector.numel())
        self.states[tensors] = state
        if codec.ladder is not None and self._chooser is not None:
            state = codec.ladder.to(state, self._chooser.rung)
        payload, self.states[tensors] = codec.encode(vector, state)
        while len(self.states) > max(MOST_STATES, len(self._pieces)):
            log.warning("more than %d sets of tensors have gradients by turns: what one left out is lost", MOST_STATES)
            self.states.popitem(last=False)
        return payload

    def take_back(self, push: Push, payload: Payload) -> bool:
        """Put a refused payload back into the residual; False where the codec remembers nothing."""
        state = self.states.get(_tensors(push))
        if self._codec.fold_back is None or state is None:
            return False
        fold_back = self._bound(push).fold_back
        assert fold_back is not None
        self.states[_tensors(push)] = fold_back(payload, state)
        return True

    def refused(self, push: Push, payload: Payload, lost: Tensor | None = None) -> bool:
        """Put a refused payload back into the residual; False where the codec remembers nothing.

        `lost`: the vector that was encoded, when nothing of it may come back with later ones (but for rounding): False.
        """
        kept = self.take_back(push, payload)
        if not kept or lost is None:
            return kept
        residual = self.states[_tensors(push)][RESIDUAL]
        residual.sub_(lost.to(residual.device))
        return False

    def note(self, payload: Payload, took_s: float, rtt_s: float, compute_s: float) -> None:
        """`payload` got its receipt: choose the rung of the next one, where the codec has several."""
        ladder = self._codec.ladder
        if ladder is None:
            return
        rung, size = ladder.of(payload), memoryview(payload).nbytes
        before = self._chooser or Chooser(ladder.bits, rung)
        upload = Uploaded(rung=rung, bytes=size, took_s=took_s, rtt_s=rtt_s, compute_s=compute_s)
        self._chooser = after = before.after(upload)
        if after.rung != before.rung:
            log.info(
                "uploads go on with %s instead of %s: %d bytes took %.3f s, and a round computes for %.3f s",
                ladder.specs[after.rung],
                ladder.specs[before.rung],
                size,
                took_s,
                after.compute_s,
            )

    def _bound(self, push: Push) -> Codec:
        present = self._pieces[push.group] if self._pieces else push.present
        return bind(self._codec, self._layout.shapes(present))


def _tensors(push: Push) -> Tensors:
    return push.group, None if push.present is None else tuple(push.present)
