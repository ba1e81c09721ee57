"""What every outer optimizer promises, over the whole table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_async.errors import PayloadError
from lightning_async.outer import OUTERS, Outer, State, Update, bind, outer
from lightning_async.outer.base import STRIP
from lightning_async.outer.torch_optim import ALLOWED
from lightning_async.persistence import Snapshot, newest, write
from lightning_async.wire.tensors import pack_tensors, unpack_tensors

SIZES = (40, 3, 1, 56)
D = sum(SIZES)
MEMBERS = [
    *(f"{name}()" for name in OUTERS),
    "delayed_nesterov(buffer=3, c=0.1)",
    "look_ahead(steps=4)",
    "delay_compensated(adam(), decay=None)",
    *(f"torch_optimizer(name='{name}', lr=0.1)" for name in ALLOWED),
]
EVERY = pytest.mark.parametrize("text", MEMBERS)


def made(text: str) -> Outer:
    return bind(outer(text), SIZES, workers=4)


def updates(count: int, seed: int = 0) -> list[Update]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Update(torch.randn(D, generator=generator) * 0.1, 0.5 + 0.5 * (i % 2), ((i % 3, 0.25), (0, 0.75)))
        for i in range(count)
    ]


def run(member: Outer, x: torch.Tensor, state: State, steps: list[Update]) -> State:
    for update in steps:
        state = member.step(x, update, state)
    return state


@EVERY
def test_a_restored_state_goes_on_bit_for_bit(text: str, tmp_path: Path) -> None:
    member, x = made(text), torch.linspace(-1, 1, D)
    state = run(member, x, member.init(D), updates(7))
    write(tmp_path, Snapshot({}, {f"state/{key}": value.clone() for key, value in state.items()} | {"x": x.clone()}))
    snapshot = newest(tmp_path)
    assert snapshot is not None
    again = snapshot.tensors["x"].clone()
    kept = {k.removeprefix("state/"): v for k, v in snapshot.tensors.items() if k.startswith("state/")}
    member.check_state(kept, D)
    run(member, x, state, updates(7, seed=1))
    run(made(text), again, made(text).init(D) | kept, updates(7, seed=1))
    assert torch.equal(x, again)


@EVERY
def test_a_state_travels_to_a_checkpoint_and_back(text: str) -> None:
    member, x = made(text), torch.zeros(D)
    state = run(member, x, member.init(D), updates(5))
    fields, payload = pack_tensors(state)
    back = unpack_tensors(fields["keys"], fields["shapes"], fields["dtypes"], payload)
    member.check_state(back, D)
    a, b = x.clone(), x.clone()
    run(member, a, state, updates(3, seed=2))
    run(member, b, back, updates(3, seed=2))
    assert torch.equal(a, b)


@EVERY
def test_a_state_that_is_another_ones_is_refused(text: str) -> None:
    member = made(text)
    state = run(member, torch.zeros(D), member.init(D), updates(1))
    for key, value in state.items():
        with pytest.raises(PayloadError, match="does not fit"):
            member.check_state({key: torch.zeros(3, *value.shape)}, D)
        rest = {k: v for k, v in state.items() if k != key}
        broken = {key: torch.full_like(value, float("nan"))} if value.is_floating_point() else {"x": value}
        for wrong in (rest | {key: value.to(torch.float64)}, state | broken, rest if rest else broken):
            with pytest.raises(PayloadError, match=r"does not fit|NaN"):
                member.check_state(wrong, D)
    with pytest.raises(PayloadError, match="does not fit"):
        member.check_state({"nobody": torch.zeros(D)}, D)
    member.check_state({}, D)


@EVERY
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_and_changes_nothing(text: str, bad: float) -> None:
    member, x = made(text), torch.zeros(D)
    state = run(member, x, member.init(D), updates(2))
    before, kept = x.clone(), {key: value.clone() for key, value in state.items()}
    vector = torch.zeros(D)
    vector[D // 2] = bad
    for update in (Update(vector), Update(torch.ones(D), bad)):
        with pytest.raises(PayloadError, match="NaN or infinity"):
            member.step(x, update, state)
    assert torch.equal(x, before)
    assert all(torch.equal(state[key], kept[key]) for key in kept)


@EVERY
def test_an_update_is_not_written_and_its_scale_multiplies_it(text: str) -> None:
    member, a, b = made(text), torch.zeros(D), torch.zeros(D)
    left, right = member.init(D), member.init(D)
    for update in updates(6):
        kept = update.vector.clone()
        left = member.step(a, Update(update.vector, 0.25), left)
        right = member.step(b, Update(update.vector * 0.25), right)
        assert torch.equal(update.vector, kept)
    assert torch.allclose(a, b, atol=1e-6)


@EVERY
def test_nothing_but_the_arguments_decides(text: str) -> None:
    ends = []
    for _ in range(2):
        member, x = made(text), torch.linspace(-1, 1, D)
        run(member, x, member.init(D), updates(9))
        ends.append(x)
    assert torch.equal(*ends)


@EVERY
def test_the_state_does_not_grow_and_the_parameters_move_in_place(text: str) -> None:
    member, x = made(text), torch.zeros(D)
    place = x.data_ptr()
    state = run(member, x, member.init(D), updates(3))
    shapes = {key: value.shape for key, value in state.items()}
    state = run(member, x, state, updates(40))
    assert {key: value.shape for key, value in state.items()} == shapes
    assert x.data_ptr() == place
    assert bool(torch.isfinite(x).all())
    assert x.abs().max() > 0


@EVERY
def test_strips_are_joined_without_a_seam(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the vectors are cut, every number gets the same step."""
    ends = []
    for strip in (STRIP, 7):
        monkeypatch.setattr("lightning_async.outer.base.STRIP", strip)
        member, x = made(text), torch.linspace(-1, 1, D)
        run(member, x, member.init(D), updates(6))
        ends.append(x)
    assert torch.allclose(*ends, atol=1e-6)


@pytest.mark.parametrize("text", ["sgd()", "nesterov()", "delayed_nesterov()", "look_ahead()", "heloco()", "adam()"])
def test_a_step_makes_nothing_of_the_models_size(text: str) -> None:
    """As torch's profiler sees it."""
    d = 4 * STRIP
    member = bind(outer(text), (d,), 1)
    x, state, update = torch.zeros(d), member.init(d), Update(torch.full((d,), 0.1), 0.5)
    state = member.step(x, update, state)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        member.step(x, update, state)
    assert max((event.self_cpu_memory_usage for event in seen.events() or ()), default=0) <= 4 * STRIP


@pytest.mark.parametrize(
    "text",
    [
        "sgd(lr=1.0)",
        "nesterov(lr=1.0, momentum=0.0)",
        "delayed_nesterov(lr=1.0, buffer=1, momentum=0.0)",
        "look_ahead(lr=1.0, momentum=0.0)",
        "delay_compensated(sgd(lr=1.0))",
        "torch_optimizer(name='SGD', lr=1.0)",
    ],
)
def test_one_worker_that_is_never_stale_trains_as_if_alone(text: str) -> None:
    """u = base - local at staleness 0: the published parameters become the worker's own, up to rounding."""
    member, x = made(text), torch.linspace(-1, 1, D)
    state = member.init(D)
    for update in updates(10):
        local = x - update.vector
        state = member.step(x, Update(x - local), state)
        assert torch.allclose(x, local, atol=1e-6)
