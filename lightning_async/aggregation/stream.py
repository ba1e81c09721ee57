"""One step of any rule: plan (small matrices only), then stream the long rows through the plan once.

`plan` needs the Gram matrix and nothing else of the rows, so shards of a vector on several machines add their partial
Gram matrices, agree on one plan, and each streams its own part.
Staleness weights enter after selection: the mixes and the `kept` of the combine never see them. Within what was kept
they are normalised by their sum, so a stale update weighs less than its neighbours but the step keeps its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_async.aggregation.base import Combine, Matrix, Mix, Reads, Row
from lightning_async.aggregation.blocks import arrays, blocks, length, sample, weighted_sum

SAMPLED = 1024


@dataclass(frozen=True)
class Plan:
    """What to do with the rows: mixed row j is sum_i mixing[j, i] x_i and counts weights[j] (None: all equal)."""

    mixing: Matrix
    weights: NDArray[np.float64] | None


def reads(mixes: Sequence[Mix]) -> Reads:
    """What the chain needs of G. A norm that is read after rows were averaged needs their products too."""
    needed: Reads = "count"
    for mix in reversed(mixes):
        if mix.reads == "gram" or (mix.reads == "count" and needed == "norms"):
            return "gram"
        needed = "norms" if mix.reads == "norms" else needed
    return needed


def plan(mixes: Sequence[Mix], gram: Matrix, weights: Sequence[float], seeds: Sequence[int]) -> Plan:
    """Chain the mixes over G [n, n] (one more row and column where the chain is anchored), then apply the weights."""
    n = len(weights)
    anchors = len(gram) - n
    mixing = np.eye(n + anchors)
    for mix, seed in zip(mixes, seeds, strict=True):
        seen = mixing @ gram @ mixing.T
        k = len(seen) - anchors
        step = mix.weigh(seen if mix.anchored else seen[:k, :k], seed)
        if not mix.anchored:
            step = np.block([[step, np.zeros((len(step), anchors))], [np.zeros((anchors, k)), np.eye(anchors)]])
        mixing = step @ mixing
        anchors = 0 if mix.anchored else anchors
    return _reweigh(mixing, np.asarray(weights, np.float64))


def _reweigh(mixing: Matrix, weights: NDArray[np.float64]) -> Plan:
    """Scale each row's share by its weight, keeping the sum of every mixed row; an anchor keeps its own share."""
    if len(weights) == 0 or np.all(weights == weights[0]):
        return Plan(mixing, None)
    n = len(weights)
    before = mixing[:, :n].sum(axis=1)
    scaled = mixing[:, :n] * weights
    after = scaled.sum(axis=1)
    safe = np.where(after > 0.0, after, 1.0)
    shares = np.where(after > 0.0, before / safe, 0.0)
    heavy = np.where(before > 0.0, after / np.where(before > 0.0, before, 1.0), 0.0)
    lone = (mixing[:, :n] != 0.0).sum(axis=1, keepdims=True) == 1  # stays what it was to the last bit: a plain row
    return Plan(np.hstack([np.where(lone, mixing[:, :n], scaled * shares[:, None]), mixing[:, n:]]), heavy)


def combine(rows: Sequence[Row], made: Plan, end: Combine | None) -> tuple[Tensor, NDArray[np.float64]]:
    """(aggregate [d], use of each row). `rows` includes the anchor where the plan has a column for it."""
    if end is None:
        m = len(made.mixing)
        share = np.full(m, 1.0 / m) if made.weights is None else made.weights / made.weights.sum()
        coefficients = share @ made.mixing
        return weighted_sum(rows, coefficients.tolist()), coefficients
    kept = end.kept(_mixed(made.mixing, sample(rows, SAMPLED))).sum(axis=1).astype(np.float64)
    shares = kept if made.weights is None else kept * made.weights
    return _streamed(rows, made, end), shares @ made.mixing


def _mixed(mixing: Matrix, block: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(torch.from_numpy(mixing).float() @ torch.from_numpy(block))


def _picked(mixing: Matrix) -> list[int] | None:
    """The rows' numbers where every mixed row is just one of the rows; else None."""
    if np.all((mixing == 0.0) | (mixing == 1.0)) and np.all(mixing.sum(axis=1) == 1.0):
        return [int(i) for i in mixing.argmax(axis=1)]
    return None


def _streamed(rows: Sequence[Row], made: Plan, end: Combine) -> Tensor:
    d, picked = length(rows), _picked(made.mixing)
    dense = [row for row in rows if isinstance(row, Tensor)]
    target = (np.empty if dense else np.zeros)(d, np.float32)
    if picked is not None and len(dense) == len(rows):
        memory = arrays(dense)
        end.reduce([memory[i] for i in picked], made.weights, target)
        return torch.from_numpy(target)
    for columns, block in blocks(rows):
        mixed = block[picked] if picked is not None else _mixed(made.mixing, block)
        result = np.empty(mixed.shape[1], np.float32)
        end.reduce(list(mixed), made.weights, result)
        target[columns] = result
    return torch.from_numpy(target)
