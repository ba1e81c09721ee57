"""Runs whose model travels in pieces: whose turn it is, what lies between, and that nothing is lost or counts twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import flat, published, run
from test_replica import ACTS, D, Run, arrival
from torch import Tensor

from lightning_async.codecs import upload_codec
from lightning_async.errors import LayoutError
from lightning_async.layout import shared_tensors
from lightning_async.wire.messages import Push
from lightning_async.worker.turns import Turns
from lightning_async.worker.uploading import Uploads

PIECES = ((0,), (1,))  # w, 6 numbers, and b, 2
FLOAT = torch.float32


class Pieces(Run):
    """The replica of a run with two pieces, which have quorums of their own."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__(dtype, seed)
        self.replica.pieces = PIECES
        self.turns, self.included = Turns(2), [0, 0]
        self.piece_of: dict[int, int] = {}

    def mask(self, piece: int) -> Tensor:
        return torch.tensor([1.0] * 6 + [0.0] * 2 if piece == 0 else [0.0] * 6 + [1.0] * 2, dtype=torch.float64)

    def send(self) -> None:
        if self.stepped:
            self.replica.note_steps()
        if not self.replica.owed:
            return
        piece = self.turns.next(self.replica.owed)
        self.seq += 1
        part = self.replica.update_of(self.seq, piece)
        own = self.progress * self.mask(piece)
        self.near(part.double(), -(own[:6] if piece == 0 else own[6:]), "an update is its piece of the progress")
        self.sent[self.seq], self.piece_of[self.seq] = -own, piece
        self.progress = self.progress - own
        self.stepped = False

    def arrive(self, take: int) -> None:
        """The run moves by the newest updates first: a later one of one piece may be in before one of the other."""
        for seq in sorted(self.sent, reverse=True)[:take]:
            piece = self.piece_of[seq]
            for other in [s for s in self.sent if s <= seq and self.piece_of[s] == piece]:
                self.published = self.published - self.sent.pop(other)
            self.included[piece] = max(self.included[piece], seq)
        self.published = (self.published + self.numbers(0.1).double()).float().double()
        self.version += 1
        told = arrival(self.version, self.published.float())
        told = type(told)(told.version, tuple(self.included), told.parameters, (), told.buffers)
        self.replica.merge(told, progressed=self.stepped)


@settings(max_examples=200)
@given(st.lists(ACTS, min_size=5, max_size=40), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 10**6))
def test_nothing_is_lost_or_counted_twice(acts: list[str], dtype: torch.dtype, seed: int) -> None:
    run = Pieces(dtype, seed)
    for name in acts:
        run.act(name)


def test_updates_of_two_pieces_that_wait_together_stay_apart() -> None:
    """They are published by steps of their own."""
    run = Pieces(FLOAT, 0)
    for _ in range(2):
        run.train()
        run.send()
        run.settle()
    assert run.replica.pending == (1, 2)
    run.arrive(1)
    run.check()
    assert run.replica.pending == (1,)


def test_updates_of_a_piece_that_wait_in_one_slot_are_one_vector() -> None:
    run = Pieces(FLOAT, 0)
    for _ in range(12):
        run.train()
        run.send()
        run.settle()
    assert run.replica.pending == (11, 12)
    assert sum(sent.vector.numel() for sent in run.replica._sent) == D
    run.check()


def test_pieces_have_their_turns_and_the_one_that_owes_is_sent() -> None:
    turns = Turns(3)
    assert [turns.next({0, 1, 2}) for _ in range(4)] == [0, 1, 2, 0]
    assert turns.next({0}) == 0
    assert turns.next({2}) == 2


def test_a_piece_began_from_the_first_parameters_after_its_last_turn() -> None:
    turns = Turns(3)
    turns.came(5)
    begins = []
    for version in range(6, 12):
        piece = turns.next({0, 1, 2})
        begins.append((piece, turns.base(piece, version - 1)))
        turns.came(version)
    assert begins == [(0, 5), (1, 5), (2, 5), (0, 6), (1, 7), (2, 8)]
    turns.align()
    turns.came(20)
    assert turns.base(1, 25) == 20


def test_a_turn_stands_for_the_samples_since_the_last_one_and_none_counts_twice() -> None:
    turns = Turns(2)
    told = []
    for piece in (0, 1, 0, 1):
        turns.note(16)
        told.append(turns.samples(piece))
    assert told == [8, 16, 16, 16], "as many as were trained, but for those of the first piece that are to come"
    assert [turns.samples(piece) for piece in (0, 1)] == [8, 1]


def test_residuals_of_many_pieces_are_all_kept() -> None:
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(50)) for _ in range(40)])
    layout = shared_tensors(model).layout
    pieces = layout.fragments(40)
    uploads = Uploads(upload_codec("topk(density=0.02)"), layout, pieces)
    for turn in range(2):
        for piece in range(40):
            push = Push(seq=40 * turn + piece + 1, base=0, digest="", group=piece)
            uploads.encode(push, torch.ones(50))
    assert len(uploads.states) == 40


def test_after_a_flush_the_run_has_all_that_one_worker_trained() -> None:
    with run("a", local_steps=2, fragments=3, weight="constant") as (server, a):
        for step in range(7):
            a.step(step)
        before = flat(a.model)
        a.engine.flush()
        assert torch.allclose(flat(a.model), before, atol=1e-6)
        assert torch.allclose(published(server), before, atol=1e-6)
        assert a.engine.replica.owed == frozenset()
        member = server.coordinator.run.members.named("a")
        assert member.steps == 7, "a piece that has its turn without a step counts none"
        assert member.samples in range(35, 38), "nor are its samples counted twice, but for rounding up"
        assert member.last_samples > 1


def test_a_run_in_pieces_is_the_run_in_one_for_one_worker() -> None:
    """Two steps between turns, three pieces: what is not sent yet is in the live model all the same."""
    ends = []
    for fragments in (1, 3):
        with run("a", local_steps=2, fragments=fragments, weight="constant") as (_, a):
            for step in range(12):
                a.step(step)
            a.engine.align()
            ends.append(flat(a.model))
    assert torch.allclose(*ends, atol=1e-6)


@pytest.mark.parametrize("compression", ["none", "topk(density=0.3)"])
def test_two_workers_in_pieces_hold_what_is_published_bit_for_bit(compression: str) -> None:
    with run("a", "b", local_steps=1, fragments=2, compression=compression) as (server, a, b):
        for step in range(9):
            a.step(step)
            b.step(100 + step)
        for worker in (a, b):
            worker.engine.align()
        for worker in (a, b):
            worker.engine.align()
            assert torch.equal(worker.engine.replica.published, published(server))
            assert worker.engine.replica.digest() == a.engine.replica.digest()


def test_an_update_is_as_small_as_its_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    from lightning_async.worker import engine

    def told(push: Any, vector: Any, *rest: Any) -> Any:
        sizes.append(vector.numel())
        return update(push, vector, *rest)

    update = engine.Update
    monkeypatch.setattr(engine, "Update", told)
    with run("a", local_steps=1, fragments=3) as (server, a):
        for step in range(6):
            a.step(step)
        pieces = server.coordinator.run.stepper.pieces
        each = [sum(a.engine.shared.layout.parameters[i].size for i in piece) for piece in pieces]
    assert sizes[:6] == each * 2
    assert max(each) < a.engine.shared.layout.d / 2


def test_more_pieces_than_tensors_are_refused_with_both_numbers() -> None:
    with pytest.raises(LayoutError, match="fragments=9 of a model with 6 trainable tensors"), run("a", fragments=9):
        pass
