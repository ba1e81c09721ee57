"""What an update must be before any rule sees it. Each check gives a refusal (reason, detail) or lets it pass.

Order: cheap facts first (digest, sequence, base, staleness), then the bytes. Rule of this file: nothing is written,
and nothing that a worker claims about itself is believed further than its cap.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_async.aggregation import Row
from lightning_async.codecs import Codec, bind
from lightning_async.config import RunConfig
from lightning_async.errors import PayloadError
from lightning_async.layout import Layout
from lightning_async.server.members import Member
from lightning_async.sparse import Sparse
from lightning_async.wire.frames import Frame
from lightning_async.wire.messages import Push, Reason
from lightning_async.wire.tensors import read_floats

CLAIM_FACTOR = 16  # samples count for at most this many times the median of the live workers
NORM_FACTOR = 1000.0  # an update this many times longer than the median of the last ones is refused
LONGEST = 1e15  # of any update: squares of it, and sums of these, are far from the end of float32


@dataclass(frozen=True)
class Refusal:
    """Why not."""

    reason: Reason
    detail: str


def check_place(push: Push, member: Member, version: int, staleness: int, bound: float, digest: str) -> Refusal | None:
    """Whether this push of this worker has a place in the run: layout, sequence, base version, staleness."""
    if push.digest != digest:
        return Refusal(Reason.LAYOUT, f"update for layout {push.digest[:40]}; this run has {digest}")
    if push.seq <= member.last_seq:
        return Refusal(Reason.SEQUENCE, f"sequence number {push.seq} after {member.last_seq}; send the next one")
    if push.base < 0 or push.base > version:
        return Refusal(Reason.FUTURE, f"base version {push.base}; this run is at version {version}")
    if staleness > bound:
        return Refusal(Reason.STALE, f"staleness {staleness} versions; the bound is {bound:.0f}")
    return None


def check_claims(push: Push, config: RunConfig, most_steps: int, groups: int, tensors: int) -> Refusal | None:
    """Whether the small numbers of a push are in range and belong to this kind of run."""
    if push.steps > most_steps:
        text = f"{push.steps} steps in one update; local_steps={config.local_steps!r} explains {most_steps} at most"
        return Refusal(Reason.LIMIT, text)
    least = 1 if config.fragments == 1 else 0  # a piece may have its turn without a step since the last one's
    if not (push.samples >= 1 and push.steps >= least and 0 <= push.group < groups):
        claim = f"samples={push.samples}, steps={push.steps}, group={push.group}"
        return Refusal(Reason.PROTOCOL, f"got {claim}; expected samples >= 1, steps >= {least}, group < {groups}")
    present = push.present
    if config.submit == "update":
        return Refusal(Reason.CONFIG, "gradients for a run of updates") if present is not None else None
    ordered = present and all(a < b for a, b in itertools.pairwise(present))
    if not ordered or not present or present[0] < 0 or present[-1] >= tensors:
        return Refusal(Reason.PROTOCOL, f"`present` must hold rising tensor indices below {tensors}")
    return None


def decode_update(
    present: Sequence[int] | None, payload: tuple[Frame, ...], codec: Codec, layout: Layout, buffers_now: Tensor
) -> tuple[Row, Tensor] | Refusal:
    """The vector of the tensors `present` (None: all), sparse where the codec is, and the buffers [b] in a payload.

    A buffer may be infinite where the run's is the same infinity: a mask, for instance.
    """
    if len(payload) != 2:
        return Refusal(Reason.LENGTH, f"got {len(payload)} payload frames, expected the update and the buffers")
    sizes = [entry.size for entry in layout.parameters]
    d = layout.d if present is None else sum(sizes[i] for i in present)
    codec = bind(codec, layout.shapes(present))
    if len(payload[0]) > codec.max_bytes(d):
        text = f"{len(payload[0])} bytes for {d} numbers; {codec.spec} takes at most {codec.max_bytes(d)}"
        return Refusal(Reason.LENGTH, text)
    if len(payload[1]) not in (0, 4 * layout.b):
        return Refusal(Reason.LENGTH, f"buffers of {len(payload[1])} bytes; this run has {4 * layout.b}")
    try:
        sparse = codec.decode_sparse
        vector = codec.decode(payload[0], d) if sparse is None else sparse(payload[0], d).lean()
    except PayloadError as error:
        return Refusal(_reason(codec, payload[0], d), str(error))
    buffers = read_floats(payload[1])
    if buffers.numel() and not bool((torch.isfinite(buffers) | (buffers == buffers_now)).all()):
        return Refusal(Reason.NOT_FINITE, "NaN or infinity in the buffers; this worker's training diverged")
    return vector, buffers


def _reason(codec: Codec, payload: Frame, d: int) -> Reason:
    """NaN and a wrong length have codes of their own, so that a worker can tell a diverged model from a bad line."""
    if not codec.lossless:
        return Reason.PAYLOAD
    return Reason.LENGTH if len(payload) != 4 * d else Reason.NOT_FINITE


def first_parameters(payload: Sequence[Frame], layout: Layout) -> tuple[Tensor, Tensor]:
    """The parameters [d] and buffers [b] that a run begins with. Raises PayloadError for what does not fit."""
    if len(payload) != 2 or len(payload[0]) != 4 * layout.d or len(payload[1]) != 4 * layout.b:
        got = [len(frame) for frame in payload]
        raise PayloadError(f"first parameters of {got} bytes; this layout takes {[4 * layout.d, 4 * layout.b]}")
    parameters, buffers = read_floats(payload[0]), read_floats(payload[1])
    if not bool(torch.isfinite(parameters).all()) or bool(torch.isnan(buffers).any()):
        raise PayloadError("NaN or infinity in the first parameters; look at the model's initialisation")
    return parameters, buffers


def check_norm(vector: Row, usual: float | None) -> Refusal | float:
    """The update's norm, or a refusal when it is more than NORM_FACTOR times the `usual` one (norms.py).

    That is a median of the workers' own, so who submits more often than others can neither raise the bound nor have
    the others refused by sending next to nothing.
    """
    norm = float(torch.linalg.vector_norm(vector.values if isinstance(vector, Sparse) else vector))
    if not norm <= LONGEST:
        text = f"the update's length is {norm:.3g}, at most {LONGEST:.0e} is taken; this worker's training diverged"
        return Refusal(Reason.NOT_FINITE, text)
    if usual is not None and norm > NORM_FACTOR * usual > 0:
        return Refusal(
            Reason.NORM, f"norm {norm:.3g}; the last updates have {usual:.3g}, and {NORM_FACTOR:.0f}x is allowed"
        )
    return norm


def capped_samples(claimed: int, live: list[Member]) -> int:
    """The samples that count: at most CLAIM_FACTOR times the median of the live workers' last claims."""
    seen = [member.last_samples for member in live if member.last_samples]
    return min(claimed, int(CLAIM_FACTOR * statistics.median(seen))) if len(seen) > 1 else claimed
