"""`powersgd`: a matrix as the product of two thin ones, by one step of power iteration from where the last one ended.

    P <- orthogonalise(M Q);  Q <- M^T P;  sent: P and Q, decoded: P Q^T       (Vogels et al. 2019, arXiv:1905.13727)

Bound to shapes (`bind`), each tensor with two or more dimensions is a matrix [first, rest] where two thin matrices are
smaller; the rest is sent as it is, as are vectors. Unbound, the whole vector is one nearly square matrix, padded with
zeros. Body: for each tensor in order P then Q, or the tensor, all of it as one payload of another codec.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_async import spec
from lightning_async.codecs import envelope
from lightning_async.codecs.base import Codec, Payload, Shape, State, checked, finite
from lightning_async.codecs.dense import check_finite, none
from lightning_async.codecs.memory import as_tensor
from lightning_async.codecs.values import by
from lightning_async.errors import ConfigError

KIND = 6
MOST_RANK = 1024


def powersgd(rank: int = 4) -> Codec:
    """Rank `rank` of each matrix, as float32; `chain(powersgd(...), fp16())` halves that. Give it error feedback.

    The state's "q" holds the last Q of every matrix. A matrix of that rank or less comes back up to rounding, once the
    iteration has met it; any other comes back no longer than it was.
    """
    if rank not in range(1, MOST_RANK + 1):
        raise ConfigError(f"powersgd got rank={rank!r}, expected 1 to {MOST_RANK}")
    return _powersgd(spec.call("powersgd", rank=rank), rank, None, none(), True)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """`size` numbers from `start`: a matrix [rows, columns] sent with `rank` columns each; rank 0: sent as they are."""

    start: int
    size: int
    rows: int = 0
    columns: int = 0
    rank: int = 0

    @property
    def sent(self) -> int:
        return self.rank * (self.rows + self.columns) if self.rank else self.size

    def factors(self, numbers: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """What is sent, flat, and the next q, flat (empty where rank is 0)."""
        if not self.rank:
            return numbers, q
        matrix = torch.nn.functional.pad(numbers, (0, self.rows * self.columns - self.size)).view(self.rows, -1)
        p, _ = torch.linalg.qr(matrix @ q.view(self.columns, self.rank))
        q = (matrix.T @ p).reshape(-1)
        return torch.cat([p.reshape(-1), q]), q

    def product(self, sent: Tensor) -> Tensor:
        """The numbers that `factors` wrote as `sent`."""
        if not self.rank:
            return sent
        p, q = torch.split(sent, [self.rank * self.rows, self.rank * self.columns])
        return (p.view(self.rows, -1) @ q.view(self.columns, -1).T).reshape(-1)[: self.size]


def _powersgd(name: str, rank: int, shapes: tuple[Shape, ...] | None, inner: Codec, open_ended: bool) -> Codec:
    values = by(inner)

    def max_bytes(d: int) -> int:
        return envelope.HEADER_BYTES + values.most_bytes(sum(part.sent for part in _parts(shapes, d, rank)))

    def init(d: int) -> State:
        size = sum(part.rank * part.columns for part in _parts(shapes, d, rank))
        return {"q": torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float32)}

    def encode(vector: Tensor, state: State) -> tuple[Payload, State]:
        vector = checked(vector)
        parts = _parts(shapes, vector.numel(), rank)
        numbers = torch.split(vector, [part.size for part in parts])
        starts = torch.split(state["q"].to(vector.device), [part.rank * part.columns for part in parts])
        both = [part.factors(x, q) for part, x, q in zip(parts, numbers, starts, strict=True)]
        sent = torch.cat([sent for sent, _ in both])
        if not finite(sent):
            raise ConfigError("powersgd's products are beyond float32; scale the vector down")
        coded, _ = values.encode(sent.cpu().numpy())
        return envelope.joined([coded], KIND, vector.numel()), {"q": torch.cat([q for _, q in both])}

    def decode(payload: Payload, d: int) -> Tensor:
        reader = envelope.opened("powersgd", payload, KIND, d, max_bytes(d))
        parts = _parts(shapes, d, rank)
        numbers = as_tensor(values.decode(reader, sum(part.sent for part in parts)))
        reader.end()
        out = as_tensor(np.empty(d, dtype=np.float32))
        for part, sent in zip(parts, torch.split(numbers, [part.sent for part in parts]), strict=True):
            out[part.start : part.start + part.size] = part.product(sent)
        check_finite("powersgd", out)
        return out

    def bind(shapes: Sequence[Shape]) -> Codec:
        return _powersgd(name, rank, tuple(shapes), inner, open_ended)

    def then(codec: Codec) -> Codec:
        return _powersgd(f"chain({name}, {codec.spec})", rank, shapes, codec, False)

    return Codec(
        spec=name,
        needs_feedback=True,
        shapes=shapes,
        init=init,
        encode=encode,
        decode=decode,
        max_bytes=max_bytes,
        then=then if open_ended else None,
        bind=bind,
    )


def _parts(shapes: tuple[Shape, ...] | None, d: int, rank: int) -> list[_Part]:
    """How the vector falls apart; ConfigError where the shapes do not fill it."""
    if shapes is None:
        side = math.isqrt(max(0, d - 1)) + 1
        return [_part(0, d, side, -(-d // side), rank)]
    parts, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        rows = shape[0] if len(shape) > 1 else 0
        parts.append(_part(start, size, rows, size // max(1, rows), rank))
        start += size
    if start != d:
        raise ConfigError(f"powersgd is bound to shapes of {start} numbers and got {d}; bind it to this run's layout")
    return parts


def _part(start: int, size: int, rows: int, columns: int, rank: int) -> _Part:
    """A matrix where sending two thin ones is shorter, else the numbers themselves."""
    pays = rank * (rows + columns) < size and rank <= min(rows, columns)
    if not pays:
        return _Part(start=start, size=size)
    return _Part(start=start, size=size, rows=rows, columns=columns, rank=rank)
