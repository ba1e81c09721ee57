"""Updates of a sparse codec wait as what they are: n of them never make a dense [n, d]."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from room import START, Room
from torch import Tensor

from lightning_async.aggregation import aggregator
from lightning_async.server import Coordinator, memory
from lightning_async.server.buffer import Buffer, Slot, union
from lightning_async.sparse import Sparse

NONE = torch.empty(0)
TOPK = {"compression": "topk(density=0.25, values='fp16')", "download_compression": "none"}


def sparse(vector: Tensor) -> Sparse:
    indices = vector.nonzero().flatten()
    return Sparse(indices, vector[indices], vector.numel())


def slot(worker: str, vector: Tensor | Sparse, samples: int = 1, present: tuple[int, ...] | None = None) -> Slot:
    return Slot(worker, vector, NONE, present, 0, 1, samples, 1)


def dense(row: Tensor | Sparse) -> Tensor:
    return row.dense() if isinstance(row, Sparse) else row


def thin(seed: int, size: int = 60, kept: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vector = torch.zeros(size)
    vector[torch.randperm(size, generator=generator)[:kept]] = torch.randn(kept, generator=generator).half().float()
    return vector


@pytest.mark.parametrize("kinds", ["ss", "sd", "ds", "dd"])
def test_rounds_of_one_worker_join_alike_whether_sparse_or_dense(kinds: str) -> None:
    buffer, vectors = Buffer(), [thin(1), thin(2), thin(3)]
    for vector, kind, samples in zip(vectors, kinds + "s", (3, 1, 4), strict=True):
        buffer.add(slot("a", sparse(vector) if kind == "s" else vector, samples), [60])
    (joined,) = buffer
    expected = (3 * vectors[0] + vectors[1] + 4 * vectors[2]) / 8
    assert torch.allclose(dense(joined.vector), expected, atol=1e-6)
    assert isinstance(joined.vector, Sparse) == (kinds == "ss")
    assert all(torch.equal(vector, thin(i + 1)) for i, vector in enumerate(vectors)), "what came is never written"


def test_a_slot_that_fills_up_becomes_dense_before_it_takes_more_memory_than_that() -> None:
    buffer = Buffer()
    for seed in range(40):
        buffer.add(slot("a", sparse(thin(seed))), [60])
        (row,) = [waiting.vector for waiting in buffer]
        if isinstance(row, Sparse):
            assert 8 * row.indices.numel() + 4 * row.values.numel() <= 4 * 60
    assert isinstance(row, Tensor)
    assert torch.allclose(row, torch.stack([thin(seed) for seed in range(40)]).mean(0), atol=1e-6)


def test_sparse_gradients_of_different_tensors_are_spread_over_all_that_came() -> None:
    sizes = [4, 0, 6, 5]
    own = [(0, 3), (2,), None, (1, 2)]
    vectors = [thin(i, sum(sizes) if p is None else sum(sizes[t] for t in p), 3) for i, p in enumerate(own)]
    kept = [slot(str(i), vector, present=p) for i, (vector, p) in enumerate(zip(vectors, own, strict=True))]
    lean = [slot(str(i), sparse(vector), present=p) for i, (vector, p) in enumerate(zip(vectors, own, strict=True))]
    present, rows = union(kept, sizes)
    assert union(lean, sizes)[0] == present == (0, 1, 2, 3)
    for row, other in zip(rows, union(lean, sizes)[1], strict=True):
        assert isinstance(other, Sparse)
        assert torch.equal(dense(other), dense(row))


@pytest.mark.parametrize("rule", ["mean", "median", "krum(f=1)", "pipeline(nnm(f=1), trimmed_mean(f=1))"])
def test_a_step_of_sparse_updates_is_that_of_the_same_updates_dense(rule: str) -> None:
    room = Room(aggregation=rule, quorum=5, **TOPK).begin(*"abcde")
    rows = [thin(seed, 8, 2) for seed in range(5)]
    for name, row in zip("abcde", rows, strict=True):
        room.push(name, row)
    made = aggregator(rule)
    expected = START - made.apply(rows, [1.0] * 5, made.init(8)).vector
    assert room.run.version == 1
    assert torch.allclose(room.parameters, expected, atol=1e-6)


def test_no_update_becomes_dense_while_it_waits_or_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    whole = Sparse.dense
    monkeypatch.setattr(Sparse, "dense", lambda row: made.append(row.size) or whole(row))
    room = Room(aggregation="krum(f=1)", quorum=5, **TOPK).begin(*"abcde")
    for name in "abcd":
        room.push(name, thin(ord(name), 8, 2))
    room.push("a", thin(ord("a"), 8, 2))
    assert room.run.stepper is not None
    assert all(isinstance(waiting.vector, Sparse) for waiting in room.run.stepper.waiting[0])
    room.push("e", thin(9, 8, 2))
    assert room.run.version == 1
    assert made == []


def test_the_norm_bound_holds_for_sparse_updates() -> None:
    room = Room(**TOPK).begin("a")
    row = thin(1, 8, 2)
    for _ in range(8):
        assert room.push("a", row).accepted
    assert room.push("a", 2000 * row).reason == "norm"


def test_sparse_slots_survive_a_restart() -> None:
    room = Room(aggregation="median", quorum=3, **TOPK).begin(*"abc")
    for name in "ab":
        room.push(name, thin(ord(name), 8, 2))
    room.push("a", thin(5, 8, 2))
    record, tensors = copy.deepcopy(memory.dump(room.run))
    again = Coordinator.restored(room.run.config, record, tensors)
    assert room.run.stepper is not None
    assert again.run.stepper is not None
    for old, new in zip(room.run.stepper.waiting[0], again.run.stepper.waiting[0], strict=True):
        assert isinstance(new.vector, type(old.vector))
        assert torch.equal(dense(old.vector), dense(new.vector))
        assert old.numbers == new.numbers
    assert math.isfinite(float(dense(new.vector).sum()))
