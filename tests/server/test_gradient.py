"""Gradient mode: the server steps the user's optimizer, as the user's own process would have done, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from room import BUFFERS, LAYOUT, START, Room, raw
from torch import Tensor, nn

from lightning_async.outer import describe, hyper_of
from lightning_async.wire import messages as m
from lightning_async.wire.messages import Reason
from lightning_async.wire.tensors import unpack_tensors

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.1}, {"params": p[1:]}], lr=0.02),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1),
}
NAMES = ("w", "b")


class Local:
    """The user's own parameters and optimizer."""

    def __init__(self, make: Make) -> None:
        self.parameters = [nn.Parameter(START[:6].clone().view(2, 3)), nn.Parameter(START[6:].clone())]
        self.optimizer = make(self.parameters)
        names = {id(p): name for p, name in zip(self.parameters, NAMES, strict=True)}
        self.record = describe(self.optimizer, names)

    def step(self, gradient: Tensor, present: tuple[int, ...] = (0, 1)) -> None:
        parts = (gradient[:6].view(2, 3), gradient[6:])
        for i, p in enumerate(self.parameters):
            p.grad = parts[i].clone() if i in present else None
        self.optimizer.step()

    @property
    def hyper(self) -> list[Any]:
        return hyper_of(self.optimizer, [group["hyper"] for group in self.record["groups"]])

    @property
    def flat(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])


def room_of(local: Local, *names: str, **config: Any) -> Room:
    return Room(submit="gradient", local_steps=1, **config).begin(*names, optimizers=[local.record])


def submit(room: Room, name: str, gradient: Tensor, hyper: list[Any], present: tuple[int, ...] = (0, 1)) -> Any:
    vector = torch.cat([(gradient[:6], gradient[6:])[i] for i in present])
    return room.push(name, vector, present=list(present), hyper=hyper)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_worker_is_its_own_optimizer_bit_for_bit_under_a_schedule(name: str) -> None:
    local = Local(OPTIMIZERS[name])
    room = room_of(local, "a")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(local.optimizer, 12)
    generator = torch.Generator().manual_seed(3)
    for i in range(12):
        gradient = torch.randn(8, generator=generator)
        present = (0,) if i % 4 == 3 else (0, 1)
        assert submit(room, "a", gradient, local.hyper, present).accepted
        local.step(gradient, present)
        schedule.step()
        assert torch.equal(room.parameters, local.flat), f"step {i}"


def test_a_tensor_without_a_gradient_is_skipped_not_given_zero() -> None:
    local = Local(lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5))
    room = room_of(local, "a")
    submit(room, "a", torch.ones(8), local.hyper, (0,))
    assert torch.equal(room.parameters[6:], START[6:])


def test_workers_with_different_tensors_make_one_step() -> None:
    local = Local(lambda p: torch.optim.SGD(p, lr=1.0))
    room = room_of(local, "a", "b", quorum=2)
    submit(room, "a", torch.ones(8), local.hyper, (0,))
    submit(room, "b", torch.ones(8), local.hyper, (0, 1))
    assert torch.allclose(room.parameters, START - torch.tensor([1.0] * 6 + [0.5] * 2))


def test_the_rate_is_the_median_over_workers_and_a_crazy_one_is_without_effect() -> None:
    local = Local(lambda p: torch.optim.SGD(p, lr=0.5))
    room = room_of(local, "a", "b", "c")
    halved, crazy = [{"lr": [0.25, 0.5]}], [{"lr": [1e30, 0.5]}]
    zero = torch.zeros(8)
    submit(room, "a", zero, halved)
    submit(room, "b", zero, halved)
    submit(room, "c", zero, crazy)
    before = room.parameters.clone()
    submit(room, "c", torch.ones(8), crazy)
    assert torch.equal(room.parameters, before - 0.25)


def test_only_the_factor_travels_not_the_rate() -> None:
    local = Local(lambda p: torch.optim.SGD(p, lr=0.5))
    room = room_of(local, "a")
    submit(room, "a", torch.ones(8), [{"lr": [50.0, 100.0]}])
    assert torch.allclose(room.parameters, START - 0.25)


@pytest.mark.parametrize(
    "hyper",
    [
        [1],
        ["lr"],
        [{"lr": 0.5}],
        [{"lr": [0.5]}],
        [{"lr": ["0.5", 0.5]}],
        [{"lr": [[1.0], 1.0]}],
        [{"lr": [None, 0.5]}],
        [{"lr": [1e300, 1e-300]}],
        [{"betas": [[0.9, 0.9], [0.9, 0.9]]}],
        [{"colour": [1.0, 1.0]}],
        [{"lr": [0.5, 0.5]}, {"lr": [0.5, 0.5]}],
    ],
)
def test_a_report_that_no_optimizer_makes_is_refused_and_wedges_nothing(hyper: list[Any]) -> None:
    local = Local(lambda p: torch.optim.SGD(p, lr=0.5))
    room = room_of(local, "a")
    receipt = submit(room, "a", torch.ones(8), hyper)
    assert (receipt.accepted, receipt.reason) == (False, Reason.PROTOCOL.value)
    assert submit(room, "a", torch.ones(8), local.hyper).accepted
    assert room.run.version == 1


@pytest.mark.parametrize("present", [None, [], [1, 0], [0, 0], [2], [-1]])
def test_tensor_indices_must_rise_and_exist(present: list[int] | None) -> None:
    room = room_of(Local(OPTIMIZERS["SGD"]), "a")
    receipt = room.push("a", torch.ones(8), present=present)
    assert (receipt.accepted, receipt.reason) == (False, Reason.PROTOCOL.value)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{}],
        ["SGD"],
        [{"class": "SGD"}],
        [{"class": "Lion", "groups": []}],
        [{"class": "SGD", "groups": []}],
        [{"class": "SGD", "groups": [{}]}],
        [{"class": "SGD", "groups": [{"names": ["nobody"], "hyper": {}}]}],
        [{"class": "SGD", "groups": [{"names": [["w"]], "hyper": {}}]}],
        [{"class": "SGD", "groups": [{"names": ["w"], "hyper": {"lr": "0.1"}}]}],
        [{"class": "SGD", "groups": [{"names": ["w"], "hyper": {"lr": -1.0}}]}],
        [{"class": "Adam", "groups": [{"names": ["w"], "hyper": {"betas": []}}]}],
        [{"class": "SGD", "groups": [{"names": ["w"], "hyper": {"lr": 1.0}}]}] * 2,
    ],
)
def test_optimizers_that_cannot_be_run_are_refused(records: list[Any]) -> None:
    room = Room(submit="gradient", local_steps=1)
    room.hello("a", rank=0)
    reply = room.say("a", m.Init(digest=LAYOUT.digest, optimizers=records), (raw(START), raw(BUFFERS)))
    assert (type(reply), getattr(reply, "reason", "")) == (m.Refused, Reason.PAYLOAD.value)
    assert room.run.version == -1


def test_the_state_can_be_fetched_and_put_back() -> None:
    local = Local(OPTIMIZERS["AdamW"])
    room = room_of(local, "a")
    for i in range(3):
        submit(room, "a", torch.full((8,), float(i)), local.hyper)
    answer = room.ask("a", m.Fetch())
    assert answer is not None
    moments = answer.message
    assert isinstance(moments, m.Moments)
    state = unpack_tensors(moments.keys, moments.shapes, moments.dtypes, answer.payload)
    assert state["0/w/exp_avg"].shape == (2, 3)
    assert float(state["0/w/step"]) == 3.0
    fields = {"keys": moments.keys, "shapes": moments.shapes, "dtypes": moments.dtypes}
    again = Room(submit="gradient", local_steps=1)
    again.hello("a", rank=0)
    init = m.Init(digest=LAYOUT.digest, optimizers=[local.record])
    again.say("a", init, (raw(room.parameters), raw(room.buffers)))
    assert isinstance(again.say("a", m.Load(**fields), answer.payload), m.Ack)
    for one in (room, again):
        submit(one, "a", torch.ones(8), local.hyper)
    assert torch.equal(room.parameters, again.parameters)
    assert again.say("a", m.Load(**fields), answer.payload).reason == Reason.UNREADY.value


@pytest.mark.parametrize("key", ["0/w/exp_avg", "1/w/exp_avg", "outer/momentum", "0/nobody/exp_avg", "w", "0/w/"])
def test_a_state_that_does_not_fit_is_refused_whole(key: str) -> None:
    room = room_of(Local(OPTIMIZERS["AdamW"]), "a")
    good = {"keys": ["0/b/exp_avg", key], "shapes": [[2], [5]], "dtypes": ["float32"] * 2}
    reply = room.say("a", m.Load(**good), (raw(torch.ones(2)), raw(torch.ones(5))))
    assert reply.reason == Reason.PAYLOAD.value
    assert room.run.stepper is not None
    assert room.run.stepper.state() == {}


def test_a_state_that_fits_only_the_first_of_two_optimizers_changes_neither() -> None:
    both = [{"class": "Adam", "groups": [{"names": [name], "hyper": {}}]} for name in ("w", "b")]
    room = Room(submit="gradient", local_steps=1).begin("a", optimizers=both)
    fields = {"keys": ["0/w/exp_avg", "1/b/exp_avg"], "shapes": [[2, 3], [5]], "dtypes": ["float32"] * 2}
    reply = room.say("a", m.Load(**fields), (raw(torch.ones(6)), raw(torch.ones(5))))
    assert reply.reason == Reason.PAYLOAD.value
    assert room.run.stepper is not None
    assert room.run.stepper.state() == {}


def test_two_optimizers_have_buffers_and_quorums_of_their_own() -> None:
    both = [
        {"class": "SGD", "groups": [{"names": [name], "hyper": {"lr": rate}}]}
        for name, rate in (("w", 1.0), ("b", 0.5))
    ]
    room = Room(submit="gradient", local_steps=1, quorum=2).begin("a", "b", optimizers=both)
    for name in ("a", "b"):
        room.push(name, torch.ones(2), present=[1], group=1)
    assert torch.equal(room.parameters, START - torch.tensor([0.0] * 6 + [0.5] * 2))
    room.push("a", torch.ones(6), present=[0], group=0)
    assert room.run.version == 1
    room.push("b", torch.ones(6), present=[0], group=0)
    assert torch.equal(room.parameters, START - torch.tensor([1.0] * 6 + [0.5] * 2))
