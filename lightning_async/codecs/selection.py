"""Which coordinates a top-k codec keeps: the k largest magnitudes of each chunk, or of the whole vector.

The rule, whatever the device: of equal magnitudes the first are kept, and zeros are never kept (so a chunk of zeros
costs a bit, not k numbers). On a device everything stays there but the survivors. On the CPU, numba's kernels do the
same in one pass, together with the error-feedback update.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_async.codecs import kernels
from lightning_async.codecs.base import INFINITY

Chunk: TypeAlias = int | None

AT_ONCE = 1 << 20
RUN = 64
SAMPLED = 512


def kept(d: int, density: float, chunk: Chunk) -> int:
    """The most coordinates kept of d."""
    if chunk is None or d <= chunk:
        return share(d, density)
    return d // chunk * share(chunk, density) + share(d % chunk, density)


def share(size: int, density: float) -> int:
    """How many are kept of one chunk: the nearest whole number, at least 1 of a chunk that is not empty."""
    return min(size, max(1, round(density * size)))


def select(target: Tensor, density: float, chunk: Chunk) -> Tensor:
    """The kept positions in `target` (float32 [d], finite): int64, increasing, on its device."""
    return _select(target, target, None, density, chunk)[0]


def accumulate(vector: Tensor, residual: Tensor, beta: float, density: float, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """residual <- beta * residual + vector in place; then the kept positions in it, and the numbers there."""
    return _select(vector, residual, beta, density, chunk)


def leave(residual: Tensor, places: Tensor, numbers: Tensor, sent: Tensor) -> None:
    """residual[places] = numbers - sent: what of the kept numbers is not sent stays."""
    fast = kernels.compiled_select() if residual.device.type == "cpu" else None
    if fast is None:
        residual[places] = numbers - sent.to(residual.device)
    else:
        fast.put_difference(residual.numpy(), places.numpy(), numbers.numpy(), sent.numpy())


def _select(vector: Tensor, target: Tensor, beta: float | None, density: float, chunk: Chunk) -> tuple[Tensor, Tensor]:
    fast = kernels.compiled_select() if target.device.type == "cpu" else None
    if chunk is not None and fast is not None:
        length = max(1, min(chunk, target.numel()))
        k, last = share(length, density), share(target.numel() % length, density)
        indices = np.empty(kept(target.numel(), density, chunk), dtype=np.int64)
        numbers = np.empty(indices.size, dtype=np.float32)
        weight = np.float32(0 if beta is None else beta)
        n = fast.select(vector.numpy(), target.numpy(), weight, beta is not None, length, k, last, indices, numbers)
        return torch.from_numpy(indices[:n]), torch.from_numpy(numbers[:n])
    if beta is not None:
        (target if beta == 1.0 else target.mul_(beta)).add_(vector)
    places = _chunks(target, density, chunk) if chunk is not None else _whole(target, share(target.numel(), density))
    return places, target.index_select(0, places)


def _chunks(target: Tensor, density: float, chunk: int) -> Tensor:
    """Some chunks at a time, so that no second vector is ever needed."""
    per = max(1, AT_ONCE // chunk) * chunk
    full = target.numel() // chunk * chunk
    found = [
        _rows(target[low : min(low + per, full)].view(-1, chunk), share(chunk, density)) + low
        for low in range(0, full, per)
    ]
    if full < target.numel():
        rest = target[full:]
        found.append(_rows(rest.view(1, -1), share(rest.numel(), density)) + full)
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device=target.device)


def _rows(rows: Tensor, k: int) -> Tensor:
    """Positions in the flattened `rows` [m, length] of each row's k largest magnitudes."""
    size = rows.abs()
    least = size.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    above = size > least
    equal = size == least
    spare = k - above.sum(dim=1, keepdim=True)
    first = equal & (equal.cumsum(dim=1) <= spare) & (size > 0)
    return (above | first).view(-1).nonzero().view(-1)


def _whole(target: Tensor, k: int) -> Tensor:
    """A sample's threshold leaves somewhat more than k candidates; among those the selection is exact."""
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=target.device)
    for wanted in (1.25, 2.0, 1.02):
        candidates = _reaching(target, _guess(target, k, wanted), 3 * k + AT_ONCE)
        if candidates is not None and candidates.numel() >= k:
            return candidates[_rows(target[candidates].view(1, -1), k)]
    return _whole_by_counting(target, k)


def _whole_by_counting(target: Tensor, k: int) -> Tensor:
    """Where samples tell little: the k-th magnitude by bisection, then what is above it and the first equals."""
    low, high = 0, INFINITY
    while high - low > 1:
        middle = (low + high) // 2
        enough = sum(int((_bits(piece) >= middle).sum()) for piece in torch.split(target, AT_ONCE)) >= k
        low, high = (middle, high) if enough else (low, middle)
    found = [torch.empty(0, dtype=torch.int64, device=target.device)]
    equal, first = [], 0
    for i, piece in enumerate(torch.split(target, AT_ONCE)):
        found.append((_bits(piece) > low).nonzero().view(-1) + i * AT_ONCE)
        if low > 0 and first < k:
            equal.append((_bits(piece) == low).nonzero().view(-1)[: k - first] + i * AT_ONCE)
            first += equal[-1].numel()
    above = torch.cat(found)
    return torch.cat([above, *equal])[:k].sort().values


def _bits(piece: Tensor) -> Tensor:
    """Magnitudes as integers, which are ordered as they are."""
    return piece.view(torch.int32) & 0x7FFFFFFF


def _guess(target: Tensor, k: int, wanted: float) -> int:
    """The magnitude (as bits) that about wanted * k reach, from one run of 64 in 512; 1 where that is nearly all."""
    full = target.numel() // RUN * RUN
    sample = target[:full].view(-1, RUN)[::SAMPLED].reshape(-1) if full >= RUN * SAMPLED * 8 else target
    rank = math.ceil(sample.numel() * wanted * k / max(1, target.numel()))
    if rank >= sample.numel():
        return 1
    return max(1, int(_bits(sample).kthvalue(sample.numel() - rank + 1).values))


def _reaching(target: Tensor, threshold: int, most: int) -> Tensor | None:
    """Positions whose magnitude's bits are at least `threshold`; None where they are more than `most`."""
    fast = kernels.compiled_select() if target.device.type == "cpu" else None
    if fast is not None:
        indices = np.empty(min(target.numel(), most), dtype=np.int64)
        n = fast.collect(target.numpy(), np.int32(threshold), indices)
        return None if n < 0 else torch.from_numpy(indices[:n])
    found, n = [torch.empty(0, dtype=torch.int64, device=target.device)], 0
    for i, piece in enumerate(torch.split(target, AT_ONCE)):
        found.append((_bits(piece) >= threshold).nonzero().view(-1) + i * AT_ONCE)
        n += found[-1].numel()
        if n > most:
            return None
    return torch.cat(found)
