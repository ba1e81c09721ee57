"""`auto`: a ladder of codecs from dense to sparse over one residual; the rung of the next payload is part of the state.

The rungs down the ladder halve the bytes, about. The sparse ones select over the whole vector at once: to keep a number
of the residual saves its square in distortion and costs about the same bits wherever it lies, so one threshold for all
is the allocation between tensors by marginal distortion, with the residual's energy in the loop: a tensor whose
leftovers grow gets more of the next payload. Who chooses the rung is not this file's matter (worker/choosing.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_async import spec
from lightning_async.codecs import envelope
from lightning_async.codecs.base import Codec, Ladder, Payload, State, checked, with_feedback
from lightning_async.codecs.dense import bf16
from lightning_async.codecs.feedback import RESIDUAL, beside
from lightning_async.codecs.integers import int4, int8
from lightning_async.codecs.memory import zeros
from lightning_async.codecs.topk import topk
from lightning_async.errors import ConfigError, PayloadError

KIND = 8
RUNG = "rung"
START = 6


def _whole(density: float, values: str) -> Codec:
    return topk(density, values, chunk=None)


RUNGS: tuple[tuple[Codec, float], ...] = (
    (bf16(), 16.0),
    (int8(), 8.1),
    (int4(), 4.3),
    (_whole(0.2, "int4"), 1.4),
    (_whole(0.1, "int4"), 0.8),
    (_whole(0.05, "int4"), 0.46),
    (_whole(0.02, "int4"), 0.21),
    (_whole(0.01, "int4"), 0.115),
    (_whole(0.005, "2bit"), 0.053),
    (_whole(0.002, "2bit"), 0.024),
)
"""Each rung and about the bits per number that it takes. The order is part of the format."""


def auto(start: int = START) -> Codec:
    """As sparse as the link needs: bf16, int8, int4, then top-k of 20 % to 0.2 %, with error feedback around them all.

    `start` is the rung of the first payload. ConfigError unless it is one.
    """
    if start not in range(len(RUNGS)):
        raise ConfigError(f"auto got start={start!r}, expected 0 (densest) to {len(RUNGS) - 1}")

    def init(d: int) -> State:
        return {RESIDUAL: zeros(d), RUNG: torch.tensor(start, dtype=torch.int64)}

    def encode(vector: Tensor, state: State) -> tuple[Payload, State]:
        vector = checked(vector)
        residual, rung = beside(state[RESIDUAL], vector), at(state)
        payload, _ = with_feedback(RUNGS[rung][0], vector, residual, 1.0, {})
        return envelope.around(payload, rung, KIND, vector.numel()), {RESIDUAL: residual, RUNG: state[RUNG]}

    def fold_back(payload: Payload, state: State) -> State:
        residual = state[RESIDUAL]
        residual.add_(decode(payload, residual.numel()).to(residual.device))
        return state

    return Codec(
        spec=spec.call("auto", start=start),
        init=init,
        encode=encode,
        decode=decode,
        max_bytes=max_bytes,
        fold_back=fold_back,
        ladder=Ladder(
            specs=tuple(codec.spec for codec, _ in RUNGS), bits=tuple(bits for _, bits in RUNGS), of=of, at=at, to=to
        ),
    )


def max_bytes(d: int) -> int:
    """No payload of any rung is longer."""
    return envelope.INNER + max(codec.max_bytes(d) for codec, _ in RUNGS)


def decode(payload: Payload, d: int) -> Tensor:
    """As `Codec.decode`, of any rung."""
    rung, inner = envelope.opened("auto", payload, KIND, d, max_bytes(d)).inner()
    if rung >= len(RUNGS):
        raise PayloadError(f"an auto payload is of rung {rung} of {len(RUNGS)}; compare both sides' versions")
    return RUNGS[rung][0].decode(inner, d)


def of(payload: Payload) -> int:
    """The rung of a payload that `decode` takes."""
    return int.from_bytes(memoryview(payload)[envelope.HEADER_BYTES : envelope.INNER], "little")


def at(state: State) -> int:
    """The rung of the next payload."""
    return int(state[RUNG])


def to(state: State, rung: int) -> State:
    """The state whose next payload is of `rung`. ConfigError where there is none such."""
    if rung not in range(len(RUNGS)):
        raise ConfigError(f"auto got rung {rung!r}, expected 0 to {len(RUNGS) - 1}")
    return {**state, RUNG: torch.tensor(rung, dtype=torch.int64)}
