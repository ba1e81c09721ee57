"""`AsyncOptimizer`: a plain PyTorch loop that trains with others."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from eventually import ENOUGH_S
from rounds import flat, model, published
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from lightning_async import AsyncOptimizer
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError, NetworkError, RefusedError
from lightning_async.server import ServerThread


def loop(
    net: Any, optimizer: Any, steps: int = 10, scheduler: Any = None, closures: bool = False, seed: int = 0
) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(5, 3, generator=generator)

        def closure(x: Any = x) -> Any:
            optimizer.zero_grad()
            loss = (net(x) - x[:, :1]).square().mean()
            loss.backward()
            return loss

        if closures:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        if scheduler is not None:
            scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))


@pytest.mark.parametrize("submit", ["update", "gradient"])
@pytest.mark.parametrize("closures", [False, True])
@pytest.mark.parametrize("over", ["wrapped", "wrapper"])
def test_it_equals_the_plain_loop(submit: str, closures: bool, over: str) -> None:
    theirs, ours = model(), model()
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.05)
    loop(theirs, plain, scheduler=ExponentialLR(plain, 0.9), closures=closures)
    with ServerThread(RunConfig(submit=submit, local_steps=1)) as server:
        wrapped = torch.optim.AdamW(ours.parameters(), lr=0.05)
        with AsyncOptimizer(wrapped, ours, server.address) as optimizer:
            scheduler = ExponentialLR(optimizer if over == "wrapper" else wrapped, 0.9)
            loop(ours, optimizer, scheduler=scheduler, closures=closures)
        assert server.coordinator.run.steps_total == 10
        assert torch.equal(flat(ours), published(server))
    assert wrapped.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
    difference = float((flat(theirs) - flat(ours)).abs().max())
    assert difference == 0.0 if submit == "gradient" else difference <= 1e-6


def test_state_dict_is_the_wrapped_ones_and_goes_back() -> None:
    net = model()
    with ServerThread(RunConfig(local_steps=2)) as server:
        wrapped = torch.optim.Adam(net.parameters(), lr=0.05)
        with AsyncOptimizer(wrapped, net, server.address) as optimizer:
            loop(net, optimizer, 4)
            saved = copy.deepcopy(optimizer.state_dict())
            assert saved["state"][0]["step"] == 4
            loop(net, optimizer, 2)
            optimizer.load_state_dict(saved)
            assert optimizer.state[next(net.parameters())]["step"] == 4
            ReduceLROnPlateau(optimizer, patience=0).step(1.0)
            loop(net, optimizer, 2)
        torch.optim.Adam(net.parameters()).load_state_dict(saved)


def test_the_rest_of_a_round_is_sent_at_the_end() -> None:
    net = model()
    with ServerThread(RunConfig(local_steps=4)) as server:
        with AsyncOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, server.address) as optimizer:
            loop(net, optimizer, 6)
        assert server.coordinator.run.steps_total == 6
        optimizer.close()


def broken_loop(net: Any, wrapped: Any, address: str) -> None:
    with AsyncOptimizer(wrapped, net, address) as optimizer:
        loop(net, optimizer, 6)
        raise ZeroDivisionError


def test_after_an_exception_in_the_body_nothing_is_left_and_nothing_more_is_sent() -> None:
    net = model()
    with ServerThread(RunConfig(local_steps=4)) as server:
        wrapped = torch.optim.SGD(net.parameters(), lr=0.1)
        with pytest.raises(ZeroDivisionError):
            broken_loop(net, wrapped, server.address)
        assert server.coordinator.run.steps_total in (0, 4), "a whole round may have left, a part of one may not"
        assert not server.coordinator.run.members.workers()
        assert "step" not in vars(wrapped)
        loop(net, wrapped, 1)


def test_stop_asked_ends_a_loop() -> None:
    net = model()
    with (
        ServerThread(RunConfig(local_steps=2, total_steps=6)) as server,
        AsyncOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, server.address) as optimizer,
    ):
        steps = 0
        while not optimizer.stop_asked:
            loop(net, optimizer, 1, seed=steps)
            steps += 1
            optimizer.engine.wait(lambda: optimizer.engine._courier.idle)
        assert steps == 6


def test_two_in_two_threads_train_one_model() -> None:
    """Compared once both have sent all and before one leaves, for then what waits for a quorum alone is stepped."""
    nets, held = [model(1), model(2)], {}
    barrier = threading.Barrier(2)
    with ServerThread(RunConfig(local_steps=2, quorum=2, workers=2)) as server:

        def train(index: int) -> None:
            optimizer = torch.optim.SGD(nets[index].parameters(), lr=0.05)
            with AsyncOptimizer(optimizer, nets[index], server.address) as shared:
                barrier.wait(ENOUGH_S)
                loop(nets[index], shared, 20, seed=index)
                shared.engine.flush()
                barrier.wait(ENOUGH_S)
                shared.engine.align()
                held[index] = flat(nets[index]), published(server)
                barrier.wait(ENOUGH_S)

        threads = [threading.Thread(target=train, args=(index,), daemon=True) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.coordinator.run.steps_total == 40
        assert server.coordinator.run.version > 0
    assert torch.equal(held[0][0], held[1][0])
    assert torch.equal(held[0][0], held[0][1])


def test_its_updates_weigh_by_the_samples_in_them() -> None:
    net = model()
    with ServerThread(RunConfig(local_steps=4)) as server:
        with AsyncOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, server.address, batch_size=32) as shared:
            loop(net, shared, 8)
        (worker,) = server.coordinator.run.members
        assert worker.samples == 8 * 32


def test_the_last_to_leave_holds_what_still_waited_for_a_quorum() -> None:
    """Its own goodbye is what makes the server step; nothing that was accepted is missing in its model."""
    net = model()
    with ServerThread(RunConfig(local_steps=2, quorum=2)) as server:
        with AsyncOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, server.address) as optimizer:
            start = flat(net)
            loop(net, optimizer, steps=5)
            assert server.coordinator.run.version == 0
        run = server.coordinator.run
        assert (run.version, run.steps_total) == (1, 5)
        assert not torch.equal(flat(net), start)
        assert torch.equal(flat(net), published(server))
        assert not [member for member in run.members if member.alive]


def test_who_leaves_a_robust_run_is_told_what_waits(caplog: pytest.LogCaptureFixture) -> None:
    net = model()
    with ServerThread(RunConfig(local_steps=2, quorum=3, aggregation="median")) as server:
        with AsyncOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, server.address) as optimizer:
            loop(net, optimizer, steps=5)
        assert torch.equal(flat(net), published(server))
        assert server.coordinator.run.version == 0
        assert "5 local steps of this worker wait for others" in caplog.text
        server.close()
    assert "Unused" in caplog.text


@pytest.mark.parametrize("closures", [False, True])
def test_its_loss_is_told(closures: bool) -> None:
    net, losses = model(), [3.0, 5.0]
    with ServerThread(RunConfig(local_steps=2)) as server:
        with AsyncOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, server.address, name="w") as optimizer:
            for value in losses:
                net(torch.ones(5, 3)).sum().backward()
                loss = torch.tensor(value)
                if closures:
                    assert optimizer.step(lambda loss=loss: loss) is loss
                else:
                    optimizer.step(loss=loss)
        assert server.coordinator.run.members.named("w").loss == 4.0


def test_it_lets_go_even_when_the_server_is_gone() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with ServerThread(RunConfig(local_steps=4)) as server:
        shared = AsyncOptimizer(optimizer, net, server.address)
        shared.engine.wait = lambda *_: (_ for _ in ()).throw(NetworkError("gone"))
        with pytest.raises(NetworkError, match="gone"):
            shared.close()
    assert "step" not in optimizer.__dict__


def test_claims_and_what_the_server_cannot_run() -> None:
    net = model()
    with ServerThread(RunConfig(local_steps=4)) as server:
        sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        with pytest.raises(RefusedError, match="local_steps: this worker was given 8, the run has 4"):
            AsyncOptimizer(sgd, net, server.address, claims={"local_steps": 8})
        AsyncOptimizer(sgd, net, server.address, claims={"local_steps": 4}).close()
    with (
        ServerThread(RunConfig(submit="gradient", local_steps=1)) as server,
        pytest.raises(ConfigError, match="LBFGS"),
    ):
        AsyncOptimizer(torch.optim.LBFGS(net.parameters()), net, server.address)
