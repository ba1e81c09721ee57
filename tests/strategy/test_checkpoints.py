"""Checkpoints: resumed training is uninterrupted training, and the files are those of any other strategy."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from models import STEPS, Checked, Net, fit, furthest, loader, sgd, state, trainer
from ports import free_address
from test_callbacks import published
from torch.optim import AdamW
from torch.optim.lr_scheduler import ExponentialLR

from lightning_async import AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.server import ServerThread


def adamw(module: Any) -> Any:
    optimizer = AdamW(module.parameters(), lr=0.05)
    return [optimizer], [{"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step"}]


RUNS = {
    "gradient, adamw": (adamw, {"submit": "gradient", "local_steps": 1}),
    "gradient, momentum": (lambda m: sgd(m, momentum=0.9), {"submit": "gradient", "local_steps": 1}),
    "update, nesterov": (adamw, {"local_steps": 2, "outer": "nesterov(lr=0.7)", "staleness": "fixed(bound=0)"}),
    "update, sgd": (adamw, {"local_steps": 3}),
}
EVERY_RUN = pytest.mark.parametrize(("configure", "config"), RUNS.values(), ids=RUNS)


class Saving(Net):
    """Saves after its first epoch."""

    def __init__(self, configure: Any, path: Path | None) -> None:
        super().__init__(configure)
        self.path = path

    def on_train_epoch_end(self) -> None:
        if self.current_epoch == 0 and self.path is not None:
            self.trainer.save_checkpoint(self.path)


def train(configure: Any, config: dict[str, Any], path: Any = None, save: Any = None, **options: Any) -> Any:
    torch.manual_seed(3)
    module = Saving(configure, save)
    with ServerThread(RunConfig(**config)) as server:
        ours = trainer(AsyncWANStrategy(server.address), **options)
        ours.fit(module, loader(), ckpt_path=path, weights_only=path and True)
    return module, ours


def exactness(config: dict[str, Any]) -> float:
    """Where training goes on while an update travels, when it is merged decides how sums are rounded."""
    return 0.0 if "staleness" in config or "submit" in config else 1e-6


@EVERY_RUN
def test_resuming_equals_going_on(configure: Any, config: dict[str, Any], tmp_path: Path) -> None:
    """With a new server, as after a reboot: the checkpoint holds what the server knew."""
    whole, _ = train(configure, config, save=tmp_path / "first.ckpt", max_epochs=3)
    resumed, ours = train(configure, config, path=tmp_path / "first.ckpt", max_epochs=3)
    assert ours.global_step == 3 * STEPS
    assert furthest(state(whole), state(resumed)) <= exactness(config)
    first = torch.load(tmp_path / "first.ckpt", weights_only=True)
    assert furthest(first["state_dict"], state(whole)) > 1e-2


@EVERY_RUN
def test_a_checkpoint_after_the_fit_is_complete_too(configure: Any, config: dict[str, Any], tmp_path: Path) -> None:
    whole, _ = train(configure, config, max_epochs=3)
    _, first = train(configure, config, max_epochs=1)
    first.save_checkpoint(tmp_path / "after.ckpt")
    resumed, _ = train(configure, config, path=tmp_path / "after.ckpt", max_epochs=3)
    assert furthest(state(whole), state(resumed)) <= exactness(config)


@pytest.fixture(scope="module")
def gloo() -> None:
    """The first process group leaves descriptors that live as long as the process."""
    with elsewhere("ddp"):
        torch.distributed.init_process_group("gloo", rank=0, world_size=1)


@contextmanager
def elsewhere(name: str) -> Iterator[Any]:
    if name == "auto":
        yield name
        return
    with pytest.MonkeyPatch.context() as environment:
        for key in ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"):
            environment.setenv(key, "127.0.0.1" if key == "MASTER_ADDR" else "0")  # ... so no child is looked after
        environment.setenv("WORLD_SIZE", "1")
        environment.setenv("MASTER_PORT", free_address().rpartition(":")[2])
        try:
            yield DDPStrategy(process_group_backend="gloo")
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


@pytest.mark.parametrize("config", [{"submit": "gradient", "local_steps": 1}, {"local_steps": 1}], ids=str)
@pytest.mark.parametrize("other", ["auto", "ddp"])
@pytest.mark.usefixtures("gloo")
def test_files_go_to_other_strategies_and_back(config: dict[str, Any], other: str, tmp_path: Path) -> None:
    theirs, _ = fit(lambda: Net(adamw), max_epochs=3)
    _, ours = train(adamw, config, max_epochs=1)
    ours.save_checkpoint(tmp_path / "ours.ckpt")
    with elsewhere(other) as strategy:
        there, plain = Net(adamw), trainer(strategy, max_epochs=2, use_distributed_sampler=False)
        plain.fit(there, loader(), ckpt_path=tmp_path / "ours.ckpt", weights_only=True)
        plain.save_checkpoint(tmp_path / "theirs.ckpt")
    back, _ = train(adamw, config, path=tmp_path / "theirs.ckpt", max_epochs=3)
    assert furthest(state(theirs), state(back)) <= 1e-6


def test_a_run_that_goes_on_keeps_its_own_state_and_says_so(tmp_path: Path, caplog: Any) -> None:
    with ServerThread(RunConfig(local_steps=1, outer="nesterov")) as server, caplog.at_level(logging.WARNING):
        ours = trainer(AsyncWANStrategy(server.address), max_epochs=1)
        ours.fit(Net(), loader())
        ours.save_checkpoint(tmp_path / "file.ckpt")
        again = Net()
        trainer(AsyncWANStrategy(server.address), max_epochs=2).fit(again, loader(), ckpt_path=tmp_path / "file.ckpt")
        assert server.coordinator.run.version == 2 * STEPS
        assert furthest(state(again), published(server, again)) == 0.0
    assert "the run's own stays" in caplog.text
    assert "is of this run" not in caplog.text, "the file and the run were at the same version"


@pytest.mark.parametrize(("steps", "said"), [(1, "is of this run, at version"), (0, "is of another run, at version")])
def test_a_file_of_another_version_or_run_is_said_and_who_wins(
    tmp_path: Path, caplog: Any, steps: int, said: str
) -> None:
    with ServerThread(RunConfig(local_steps=1)) as first, ServerThread(RunConfig(local_steps=1)) as second:
        ours = trainer(AsyncWANStrategy(first.address), max_epochs=1)
        ours.fit(Net(), loader())
        ours.save_checkpoint(tmp_path / "file.ckpt")
        server = first if steps else second
        trainer(AsyncWANStrategy(server.address), max_epochs=1).fit(Net(), loader())
        again = Net()
        with caplog.at_level(logging.WARNING):
            trainer(AsyncWANStrategy(server.address), max_epochs=2).fit(
                again, loader(), ckpt_path=tmp_path / "file.ckpt"
            )
        assert furthest(state(again), published(server, again)) == 0.0
    assert said in caplog.text
    assert "its parameters win" in caplog.text


def test_fitting_twice_and_testing_with_one_trainer() -> None:
    module = Checked()
    with ServerThread(RunConfig(local_steps=4)) as server:
        strategy = AsyncWANStrategy(server.address)
        ours = trainer(strategy, max_epochs=1)
        ours.fit(module, loader(), loader(16))
        version = server.coordinator.run.version
        ours.fit_loop.max_epochs = 2
        ours.fit(module, loader(), loader(16))
        assert server.coordinator.run.version > version
        trainer(AsyncWANStrategy(server.address), max_epochs=1).fit(module, loader(), loader(16))
        assert server.coordinator.run.steps_total == 3 * STEPS
        assert strategy.report()["steps"] == 2 * STEPS
    ours.test(module, loader(16), verbose=False)
    assert len(ours.predict(module, loader(16))) == 2
    assert [type(c).__name__ for c in ours.callbacks if "First" in type(c).__name__] == []


@pytest.mark.parametrize("server", [None, "tcp://127.0.0.1:1"], ids=["embedded", "nobody there"])
def test_validating_testing_and_predicting_need_no_server(server: str | None) -> None:
    ours = trainer(AsyncWANStrategy(server))
    module = Checked()
    before = state(module)
    ours.validate(module, loader(16), verbose=False)
    ours.test(module, loader(16), verbose=False)
    ours.predict(module, loader(16))
    assert furthest(before, state(module)) == 0.0


class Copying(Net):
    """Copies the strategy while it trains."""

    copies: tuple[Any, ...] = ()

    def on_train_epoch_end(self) -> None:
        strategy = self.trainer.strategy
        Copying.copies = (copy.deepcopy(strategy),)


def test_strategy_and_trainer_can_be_pickled_and_copied_even_in_mid_run() -> None:
    with ServerThread(RunConfig(local_steps=4)) as server:
        strategy = AsyncWANStrategy(server.address, compression="none", name="a")
        ours = trainer(strategy, max_epochs=1)
        again = copy.deepcopy(ours)
        ours.fit(Copying(), loader())
        again.fit(Net(), loader())
        assert server.coordinator.run.steps_total == 2 * STEPS
    for copied in (*Copying.copies, pickle.loads(pickle.dumps(AsyncWANStrategy(server.address, compression="none")))):  # noqa: S301
        assert copied.summary() == f"server {server.address} | compression=none"


def test_the_optimizers_are_the_users_during_and_after_the_fit() -> None:
    made: list[Any] = []

    def configure(module: Any) -> Any:
        made.append(sgd(module))
        return made[0]

    class Looking(Net):
        def on_train_batch_end(self, *_: Any) -> None:
            assert self.trainer.optimizers == made
            assert self.optimizers(use_pl_optimizer=False) is made[0]
            assert isinstance(self.optimizers(), torch.optim.SGD)
            assert "step" in vars(made[0])

    with ServerThread(RunConfig()) as server:
        trainer(AsyncWANStrategy(server.address), max_epochs=1).fit(Looking(configure), loader())
    assert "step" not in vars(made[0])
    assert made[0].step.__func__ is torch.optim.SGD.step


def test_the_step_that_a_scheduler_has_wrapped_is_restored() -> None:
    made: list[Any] = []

    def configure(module: Any) -> Any:
        made.append(sgd(module))
        schedule = ExponentialLR(made[0], 0.5)
        made.append(made[0].step)
        return [made[0]], [schedule]

    with ServerThread(RunConfig()) as server:
        trainer(AsyncWANStrategy(server.address), max_epochs=1).fit(Net(configure), loader())
    assert made[0].step == made[1]


def test_a_copied_trainer_still_launches_its_other_ranks() -> None:
    ours = trainer(AsyncWANStrategy(), devices=3)
    copied = copy.deepcopy(ours).strategy
    assert type(copied.launcher) is type(ours.strategy.launcher)
    assert copied.launcher.num_processes == 3
    assert copied.launcher is not ours.strategy.launcher


class SavingEarly(Net):
    """Saves in the middle of its first epoch, or at its end."""

    def __init__(self, path: Path, batches: int) -> None:
        super().__init__(sgd)
        self.path, self.batches = path, batches

    def on_train_batch_end(self, *args: Any) -> None:
        if self.current_epoch == 0 and args[-1] + 1 == self.batches:
            self.trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
@pytest.mark.parametrize(
    ("batches", "data", "told"), [(2, "shared", True), (2, "own", False), (STEPS, "shared", False)]
)
def test_a_fit_from_the_middle_of_an_epoch_with_a_new_server_says_what_it_trains_on_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, batches: int, data: str, told: bool
) -> None:
    path = tmp_path / "early.ckpt"
    for ckpt_path in (None, path):
        module = SavingEarly(path, batches)
        with ServerThread(RunConfig(local_steps=1)) as server:
            ours = trainer(AsyncWANStrategy(server.address, data=data))
            ours.fit(module, loader(), ckpt_path=ckpt_path, weights_only=ckpt_path and True)
            state = server.coordinator.run.streams
            applied = sum(ledger.applied for ledger in state.values())
    assert ("they are trained on once more" in caplog.text) is told
    if told:
        assert applied == 2 * len(loader().dataset), "as it says: both epochs from the first sample on"
