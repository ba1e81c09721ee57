"""The engine against a real server in a thread: joining, rounds, divergence, the end, and who may disturb it."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from eventually import ENOUGH_S
from rounds import Worker, flat, model, published, run

from lightning_async.config import RunConfig
from lightning_async.errors import AsyncWANError, CallerError, NetworkError, RefusedError
from lightning_async.server import ServerThread
from lightning_async.telemetry.events import Accepted
from lightning_async.worker import Engine


def test_a_second_worker_starts_from_the_published_parameters() -> None:
    with run("a", local_steps=2) as (server, a):
        for step in range(5):
            a.step(step)
        a.engine.align()
        with contextlib.closing(Worker(server.address, "b", seed=99)) as b:
            assert torch.equal(flat(b.model), published(server))
            assert torch.equal(flat(b.model), flat(a.model))


def test_a_rounds_numbers_are_told() -> None:
    with run("a", local_steps=3) as (server, a):
        for step in range(7):
            a.step(step)
        a.engine.flush()
        member = server.coordinator.run.members.named("a")
        assert (member.accepted, member.steps, member.samples) == (3, 7, 35)
        assert a.engine.replica.pending == ()


def test_a_round_after_an_align_is_as_young_as_what_it_starts_from() -> None:
    with run("a", local_steps=2) as (server, a), contextlib.closing(Worker(server.address, "b")) as b:
        a.step(0)
        a.step(1)
        for step in range(6):
            b.step(step)
        b.engine.flush()
        a.engine.align()
        a.engine.release()
        a.step(2)
        a.step(3)
        a.engine.flush()
        assert server.coordinator.run.members.named("a").staleness.counts == {0: 2}


def test_the_mean_of_a_rounds_losses_is_told() -> None:
    seen: list[Any] = []
    with run("a", local_steps=2) as (server, a):
        server.coordinator.run.emit = lambda event: seen.append(event)
        for step, losses in enumerate([[1.0], [2.0, 6.0], [], [], [float("inf")], [1.0]]):
            for loss in losses:
                a.engine.count_loss(torch.tensor([loss], dtype=torch.bfloat16, requires_grad=True))
            a.step(step)
        a.engine.flush()
        assert [event.loss for event in seen if isinstance(event, Accepted)] == [3.0, None, None]
        assert server.coordinator.run.members.named("a").loss is None


def test_losses_of_a_tuners_trial_are_not_told() -> None:
    with run("a", local_steps=1) as (server, a):
        a.engine.count_loss(torch.tensor(100.0))
        a.engine.arm()
        a.engine.count_loss(torch.tensor(4.0))
        a.step(0)
        a.engine.flush()
        assert server.coordinator.run.members.named("a").loss == 4.0


def test_steps_that_no_round_explains_are_not_claimed() -> None:
    """A worker that was refused for very long has more behind it than an update may claim."""
    with run("a", local_steps=1) as (server, a):
        a.engine._round.regain(steps=1000, samples=1)
        a.step(0)
        a.engine.flush()
        member = server.coordinator.run.members.named("a")
        assert (member.accepted, member.steps) == (1, 20)


def test_flush_keeps_its_promise_or_raises_when_training_is_being_stopped() -> None:
    """The server is busy with an update when the wait for it is given up: nothing more is sent, and nothing lost."""
    gate, waits, seen = threading.Event(), threading.Event(), []
    with run("a", local_steps=1) as (server, a):
        service = server._service
        turn = service.turn

        def held() -> None:
            waits.set()
            gate.wait(60.0)
            turn()

        service.turn = held
        assert waits.wait(60.0)
        a.engine._exchange = lambda update, exchange=a.engine._exchange: (
            seen.append(update.push.seq),
            exchange(update),
        )
        a.step(0)
        a.engine._give_up = lambda: True
        a.step(1)  # its round is over, and the one before it is still under way
        assert seen == [1]
        with pytest.raises(NetworkError, match="given up because training is being stopped"):
            a.engine.flush()
        assert seen == [1]
        a.engine._give_up = lambda: False
        gate.set()
        a.engine.flush()
        member = server.coordinator.run.members.named("a")
        assert (seen, member.accepted, member.steps) == ([1, 2], 2, 2)


def test_two_workers_in_lockstep_equal_the_mean_by_hand() -> None:
    """staleness=0, quorum="all": every version is made of everybody's round from the version before."""
    rounds, steps = 3, 2
    by_hand = [model(), model()]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in by_hand]
    for number in range(rounds):
        for index, (net, optimizer) in enumerate(zip(by_hand, optimizers, strict=True)):
            for step in range(steps):
                x = torch.randn(5, 3, generator=torch.Generator().manual_seed(100 * index + number * steps + step))
                optimizer.zero_grad()
                net(x).square().mean().backward()
                optimizer.step()
        for p, q in zip(by_hand[0].parameters(), by_hand[1].parameters(), strict=True):
            p.data = (p.data + q.data) / 2
            q.data = p.data.clone()
    with run("a", "b", local_steps=steps, staleness="fixed(bound=0)", quorum="all", workers=2) as (server, a, b):

        def train(worker: Worker, index: int) -> None:
            for step in range(rounds * steps):
                worker.step(100 * index + step)

        threads = [threading.Thread(target=train, args=(w, i), daemon=True) for i, w in enumerate((a, b))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.coordinator.run.version == rounds
        assert torch.allclose(flat(a.model), flat(by_hand[0]), atol=1e-6)
        assert torch.equal(flat(a.model), flat(b.model))


def test_a_nan_is_never_sent_and_training_goes_on(caplog: Any) -> None:
    with run("a", local_steps=1) as (server, a), caplog.at_level(logging.WARNING):
        a.step(0)
        a.engine.flush()
        before = published(server)
        a.step(1, scale=float("nan"))
        a.engine.flush()
        assert torch.equal(published(server), before)
        assert torch.equal(flat(a.model), before), "what diverged is thrown away"
        assert "not_finite" in caplog.text
        a.step(2)
        a.engine.flush()
        assert not torch.equal(published(server), before)


def diverge(worker: Worker) -> None:
    for step in range(9):
        worker.step(step, scale=float("inf"))
        worker.engine.flush()


def test_three_diverged_rounds_in_a_row_are_an_error() -> None:
    with run("a", local_steps=1) as (_, a), pytest.raises(CallerError, match="3 rounds in a row held NaN"):
        diverge(a)


def test_a_good_round_in_between_starts_the_count_again() -> None:
    with run("a", local_steps=1) as (_, a):
        for step in range(6):
            a.step(step, scale=float("nan") if step % 3 else 1.0)
            a.engine.flush()


def test_diverged_gradients_are_refused_too() -> None:
    with run("a", submit="gradient", local_steps=1) as (server, a):
        a.step(0)
        before = published(server)
        a.step(1, scale=float("nan"))
        assert torch.equal(flat(a.model), before)
        with pytest.raises(CallerError, match="rounds in a row"):
            diverge(a)


@pytest.mark.parametrize("closure", [False, True])
def test_in_gradient_mode_nothing_is_stepped_here(closure: bool) -> None:
    """While the quorum is not there the model stays as published, and no momentum is ever kept on a worker."""
    with run("a", "b", submit="gradient", local_steps=1, quorum=2) as (server, a, b):
        for worker in (a, b):
            worker.optimizer.param_groups[0]["momentum"] = 0.9
        start, gradients = published(server), []

        def backward() -> torch.Tensor:
            a.optimizer.zero_grad()
            loss = a.model(torch.ones(2, 3)).square().mean()
            loss.backward()
            gradients.extend(p.grad.clone() for p in a.model.parameters())
            return loss

        if closure:
            assert a.optimizer.step(backward) is not None
        else:
            backward()
            a.optimizer.step()
        assert torch.equal(flat(a.model), start)
        assert not a.optimizer.state
        for p, gradient in zip(a.model.parameters(), gradients, strict=True):
            assert torch.equal(p.grad, gradient), "whoever logs gradients after the step finds them"
        b.step(1)
        assert not torch.equal(published(server), start)


def test_an_error_in_the_background_comes_out_at_the_next_step() -> None:
    with run("a", local_steps=100) as (_, a):
        a.step(0)

        def broken() -> None:
            raise RuntimeError("broken in the background")

        a.engine._courier._post(broken)
        assert a.engine._courier._runner.join(ENOUGH_S)
        with pytest.raises(RuntimeError, match="broken in the background"):
            a.step(1)


def test_a_server_that_stops_asks_the_workers_to_stop() -> None:
    with run("a", local_steps=1) as (server, a):
        a.step(0)
        closing = threading.Thread(target=server.close, daemon=True)
        closing.start()
        assert a.engine.wait(lambda: a.engine.stop_asked, ENOUGH_S)
        a.step(1)
        a.close()
        closing.join(ENOUGH_S)
        assert not closing.is_alive()


def test_the_run_ends_for_everybody_at_its_steps() -> None:
    with run("a", "b", local_steps=2, total_steps=6) as (server, a, b):
        for step in range(8):
            a.step(step)
            a.engine.flush()
            if a.engine.stop_asked:
                break
        assert step == 5
        assert b.engine.wait(lambda: b.engine.stop_asked, ENOUGH_S)
        b.step(1)
        b.step(2)
        b.engine.align()
        assert torch.equal(flat(b.model), published(server)), "what comes too late changes nothing"
        assert server.coordinator.run.steps_total == 6


LATE: dict[str, Any] = {"staleness": "fixed(bound=0)", "follow": False}  # the second one to send is always too late


def test_what_a_refused_round_took_goes_with_the_one_that_brings_its_progress() -> None:
    with run("a", "b", local_steps=2, **LATE) as (server, a, b):
        for worker in (a, b):
            worker.step(0)
            worker.step(1)
        a.engine.align()
        b.engine.align()
        member = server.coordinator.run.members.named("b")
        assert member.refused["stale"] >= 1, "the refusal happened"
        assert member.steps == 2
        assert server.coordinator.run.steps_total == 4


def test_a_late_update_is_not_lost() -> None:
    """Refused as too old, it goes out again from the newest version; so nothing is lost when the model is shown."""
    with run("a", "b", local_steps=1, **LATE) as (server, a, b):
        start = published(server)
        a.step(0)
        b.step(1)
        a.engine.align()
        b.engine.align()
        members = server.coordinator.run.members
        assert members.named("b").refused["stale"] >= 1, "the refusal happened"
        a.engine.align()
        alone = []
        for seed in (0, 1):
            net = model()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
            net(x).square().mean().backward()
            optimizer.step()
            alone.append(flat(net) - start)
        assert torch.allclose(published(server), start + alone[0] + alone[1], atol=1e-6)
        assert torch.equal(flat(a.model), published(server))


def test_what_is_always_refused_is_said_in_the_end() -> None:
    with run("a", local_steps=1) as (server, a):
        server.coordinator.run.stepper.check_norm = lambda *update: refusal()
        a.step(0)
        with pytest.raises(RefusedError, match="too long for this test"):
            a.engine.flush()


def refusal() -> Any:
    from lightning_async.server.admission import Refusal
    from lightning_async.wire.messages import Reason

    return Refusal(Reason.NORM, "too long for this test")


def test_updates_that_wait_for_a_quorum_stay_in_the_live_model() -> None:
    with run("a", "b", local_steps=1, quorum=2) as (server, a, b):
        start = flat(a.model)
        a.step(0)
        a.engine.flush()
        moved = flat(a.model)
        assert not torch.equal(moved, start)
        a.engine.align()
        assert torch.equal(flat(a.model), start), "published is what it was"
        a.engine.release()
        assert torch.allclose(flat(a.model), moved, atol=1e-7)
        b.step(1)
        b.engine.flush()
        a.engine.align()
        a.engine.release()
        assert torch.equal(flat(a.model), published(server))


@pytest.mark.parametrize("compression", ["none", "fp16", "int8", "int4", "topk(density=0.3)", "signsgd", "powersgd"])
def test_the_courier_is_deaf_to_process_wide_torch_state(compression: str) -> None:
    """Lightning sets the default dtype for a step and switches gradients off for validation, for every thread."""

    def train(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        rules = {"compression": compression, "download_compression": "int8", "staleness": "fixed(bound=0)"}
        with run("a", local_steps=1, **rules) as (server, a):
            try:
                for step in range(6):
                    torch.set_default_dtype(dtype)
                    a.step(step)
                    with torch.inference_mode():
                        a.engine.flush()
                    torch.set_default_dtype(torch.float32)
            finally:
                torch.set_default_dtype(torch.float32)
            a.engine.align()
            buffers = torch.cat([a.model[1].running_mean, a.model[1].running_var])
            return torch.cat([flat(a.model), buffers]), torch.cat(
                [published(server), server.coordinator.run.store.buffers]
            )

    plain, other = train(torch.float32), train(torch.bfloat16)
    assert torch.equal(plain[0], plain[1])
    assert torch.equal(plain[0], other[0])
    assert torch.equal(plain[1], other[1])


def test_memory_is_three_flat_copies_at_most() -> None:
    """P, the update in flight, and for a moment what has arrived. The server holds nothing of its own meanwhile."""
    net = torch.nn.Linear(512, 511)
    bytes_of_model = 4 * sum(p.numel() for p in net.parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before, copies = flat_bytes(), []
    with (
        ServerThread(RunConfig(local_steps=1)) as server,
        contextlib.closing(Engine(server.address, net, [optimizer])) as engine,
    ):
        engine.start()
        engine.arm()
        for _ in range(2):
            for p in net.parameters():
                p.data.add_(0.01)
            full = engine.traffic.sent_bytes + bytes_of_model
            with standing_still(server):
                engine.after_step(0)
                assert engine.wait(lambda full=full: engine.traffic.sent_bytes > full, ENOUGH_S)
                copies.append((flat_bytes() - before - of_server(server)) / bytes_of_model)
            assert engine.wait(lambda: engine._courier.idle, ENOUGH_S)
            with standing_still(server):
                copies.append((flat_bytes() - before - of_server(server)) / bytes_of_model)
    assert 1.0 <= max(copies) <= 3.1, copies


@contextlib.contextmanager
def standing_still(server: ServerThread) -> Iterator[None]:
    """The server's thread stands between two events."""
    here, free = threading.Event(), threading.Event()
    coordinator = server._service.coordinator
    handle = coordinator.handle

    def stand(event: Any, now: float) -> Any:
        here.set()
        free.wait()
        return handle(event, now)

    coordinator.handle = stand  # type: ignore[method-assign]
    try:
        assert here.wait(ENOUGH_S)
        yield
    finally:
        del coordinator.handle
        free.set()


LARGE = 512 * 511


def flat_bytes() -> int:
    """Bytes in the storages of all live tensors that are as large as the model."""
    gc.collect()
    found = (o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter) and o.numel() >= LARGE)
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


def of_server(server: ServerThread) -> int:
    store = server.coordinator.run.store
    assert store is not None
    vectors = {t.data_ptr(): t.nbytes for t in vars(store).values() if isinstance(t, torch.Tensor)}
    return sum(vectors.values())


def test_joining_twice_under_one_name_is_refused() -> None:
    with run("a") as (server, _), pytest.raises(RefusedError, match="a live worker is called 'a'"):
        Worker(server.address, "a")


def test_an_engine_that_failed_to_join_leaves_nothing() -> None:
    with run("a") as (server, _):
        engine = Engine(server.address, torch.nn.Linear(2, 2), [])
        with pytest.raises(AsyncWANError):
            engine.start()
        engine.close()
