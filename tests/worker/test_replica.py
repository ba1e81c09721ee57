"""The replica's algebra: live = P - pending + progress, whatever the order of updates, arrivals and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_async.layout import shared_tensors
from lightning_async.worker.replica import Arrival, Replica

FLOAT = torch.float32
D = 8


class Model(nn.Module):
    """Two parameters of 8 numbers in all, and BatchNorm-like buffers."""

    def __init__(self, dtype: torch.dtype = FLOAT) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, 3, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(2, dtype=dtype))
        self.register_buffer("mean", torch.zeros(2))


def arrival(version: int, parameters: Tensor, included: int = 0, buffers: Tensor | None = None) -> Arrival:
    return Arrival(version, included, parameters.clone(), (), torch.zeros(2) if buffers is None else buffers)


class Run:
    """A replica, and beside it what each of its parts ought to be, in float64."""

    def __init__(self, dtype: torch.dtype = FLOAT, seed: int = 0) -> None:
        self.model = Model(dtype)
        self.replica = Replica(shared_tensors(self.model))
        self.generator = torch.Generator().manual_seed(seed)
        self.published = self.numbers(1.0).double()
        self.progress = torch.zeros(D, dtype=torch.float64)
        self.sent: dict[int, Tensor] = {}
        self.version = self.seq = 0
        self.stepped = False
        self.replica.load(arrival(0, self.published.float()))
        self.rounding = torch.finfo(dtype).eps

    def numbers(self, scale: float) -> Tensor:
        return torch.randn(D, generator=self.generator, dtype=FLOAT) * scale

    def train(self) -> None:
        before = self.replica.live().double()
        change = self.numbers(0.1)
        offset = 0
        for p in self.model.parameters():
            p.data.add_(change[offset : offset + p.numel()].view(p.shape))
            offset += p.numel()
        self.progress += self.replica.live().double() - before
        self.stepped = True

    def send(self) -> None:
        self.seq += 1
        u = self.replica.update(self.seq)
        self.near(u.double(), -self.progress, "an update is the progress, negated")
        self.sent[self.seq] = u.double()
        self.progress = torch.zeros(D, dtype=torch.float64)
        self.stepped = False

    def arrive(self, take: int) -> None:
        """The run moves by the first `take` updates that are under way, and by what others have sent."""
        held = list(self.sent)[:take]
        for seq in held:
            self.published = self.published - self.sent.pop(seq)
        self.published = (self.published + self.numbers(0.1).double()).float().double()
        self.version += 1
        included = held[-1] if held else (min(self.sent) - 1 if self.sent else self.seq)
        self.replica.merge(arrival(self.version, self.published.float(), included), progressed=self.stepped)

    def refuse(self, kept: bool) -> None:
        if not self.sent:
            return
        seq = next(iter(self.sent))
        u = self.sent.pop(seq)
        if kept:
            self.replica.give_up(seq)
        else:
            self.replica.take_back(seq)
            self.progress = self.progress - u

    def settle(self) -> None:
        """The newest update is accepted. Those of one version wait in one slot, so they come back together."""
        self.replica.settle(self.seq, self.version)

    def near(self, got: Tensor, expected: Tensor, what: str, allowed: float = 1e-5) -> None:
        assert torch.allclose(got, expected, rtol=0.0, atol=allowed), f"{what}: off by {(got - expected).abs().max()}"

    def act(self, name: str) -> None:
        """One of ACTS, after which everything must be right."""
        {
            "train": self.train,
            "send": self.send,
            "arrive 0": lambda: self.arrive(0),
            "arrive 1": lambda: self.arrive(1),
            "arrive all": lambda: self.arrive(len(self.sent)),
            "take back": lambda: self.refuse(kept=False),
            "give up": lambda: self.refuse(kept=True),
        }[name]()
        self.check()

    def check(self) -> None:
        pending = sum(self.sent.values(), torch.zeros(D, dtype=torch.float64))
        expected = self.published - pending + self.progress
        once = 1e-5 + 4 * self.rounding  # what the model cannot hold is rounded away once, and never adds up
        self.near(self.replica.live().double(), expected, "live = P - pending + progress", once)


ACTS = st.sampled_from(["train", "train", "send", "arrive 0", "arrive 1", "arrive all", "take back", "give up"])


@settings(max_examples=300)
@given(st.lists(ACTS, min_size=5, max_size=40), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 10**6))
def test_nothing_is_lost_or_counted_twice(acts: list[str], dtype: torch.dtype, seed: int) -> None:
    run = Run(dtype, seed)
    for name in acts:
        run.act(name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_half_precision_is_never_progress(dtype: torch.dtype) -> None:
    """Else every round without training would push the run towards what the model can hold."""
    run = Run(dtype)
    for _ in range(5):
        run.arrive(0)
        assert not run.replica.update(99).any()
        run.replica.take_back(99)


def test_a_model_in_double_precision_keeps_its_progress() -> None:
    run = Run(torch.float64)
    run.train()
    assert run.replica.update(1).any()


def test_without_progress_live_is_published_to_the_last_bit() -> None:
    run = Run()
    run.train()
    run.send()
    run.arrive(1)
    assert torch.equal(run.replica.live(), run.published.float())


def test_deltas_and_the_snapshot_give_the_same_bits() -> None:
    whole, chained = Run(), Run()
    first, second = whole.numbers(0.1), whole.numbers(0.1)
    whole.replica.merge(arrival(2, (whole.published.float() + first) + second), progressed=False)
    chained.replica.merge(Arrival(2, 0, None, (first, second), torch.zeros(2)), progressed=False)
    assert torch.equal(whole.replica.live(), chained.replica.live())
    assert whole.replica.digest() == chained.replica.digest()


def test_updates_in_one_slot_become_one_vector_and_come_back_together() -> None:
    run = Run()
    for _ in range(20):
        run.train()
        run.send()
        run.settle()
        run.check()
    assert run.replica.pending == (20,), "what a long wait for a quorum holds does not grow"
    run.arrive(20)
    run.check()
    assert run.replica.pending == ()


def test_settled_at_another_version_it_stays_apart() -> None:
    run = Run()
    for _ in range(2):
        run.train()
        run.send()
        run.settle()
        run.version += 1
    assert run.replica.pending == (1, 2)
    run.arrive(1)
    run.check()


@pytest.mark.parametrize("progressed", [True, False])
def test_what_is_taken_back_survives_an_arrival_and_is_sent_again(progressed: bool) -> None:
    run = Run()
    run.train()
    run.send()
    first = run.sent[1]
    run.refuse(kept=False)
    if progressed:
        run.train()
    run.arrive(0)
    run.check()
    run.send()
    if not progressed:
        run.near(run.sent[2], first, "the second update is the first one again")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_codec_keeps_leaves_the_model_and_is_not_sent_again(dtype: torch.dtype) -> None:
    run = Run(dtype)
    run.train()
    run.send()
    run.refuse(kept=True)
    run.check()
    run.send()
    assert not run.sent[2].abs().max() > 1e-5


def test_a_discarded_update_is_gone_and_live_is_finite_again() -> None:
    run = Run()
    run.train()
    run.send()
    next(run.model.parameters()).data.fill_(float("nan"))
    run.replica.update(2)
    run.replica.discard(2)
    assert run.replica.pending == (1,)
    run.check()


def test_published_can_be_shown_and_hidden_without_losing_what_is_pending() -> None:
    run = Run()
    run.train()
    run.send()
    before = run.replica.live()
    run.replica.show_published()
    assert torch.equal(run.replica.live(), run.replica.published)
    run.replica.hide_published()
    assert torch.allclose(run.replica.live(), before, atol=1e-6)
    run.check()


def test_own_newer_buffers_stay_when_the_run_holds_what_we_sent() -> None:
    run = Run()
    run.model.mean.fill_(1.0)
    run.train()
    run.send()
    run.model.mean.fill_(2.0)
    run.replica.merge(arrival(1, run.published.float(), 1, torch.full((2,), 1.0)), progressed=True)
    assert torch.equal(run.model.mean, torch.full((2,), 2.0))
    run.replica.merge(arrival(2, run.published.float(), 1, torch.full((2,), 5.0)), progressed=True)
    assert torch.equal(run.model.mean, torch.full((2,), 5.0))


def test_the_default_dtype_does_not_matter() -> None:
    results: list[Any] = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            run = Run()
            run.train()
            run.send()
            run.train()
            run.arrive(1)
            results.append(run.replica.live())
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
