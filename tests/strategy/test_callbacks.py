"""Lightning's own callbacks and Trainer features do under this strategy what they do on one device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.tuner import Tuner
from models import BATCH, SAMPLES, STEPS, Checked, Net, data, furthest, loader, sgd, state, trainer
from torch.optim import AdamW
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

from lightning_async import AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.server import ServerThread


@pytest.fixture
def server() -> Iterator[ServerThread]:
    with ServerThread(RunConfig(local_steps=4)) as server:
        yield server


def accepted(server: ServerThread) -> int:
    return server.coordinator.run.steps_total


def published(server: ServerThread, module: Any) -> dict[str, torch.Tensor]:
    """What a worker would get now, in the form of `module`'s state dict (no buffers)."""
    store = server.coordinator.run.store
    assert store is not None
    return {entry.name: store.published[entry.range].view(entry.shape).clone() for entry in store.layout.parameters}


@pytest.mark.parametrize("submit", ["update", "gradient"])
def test_validation_and_test_see_exactly_the_published_parameters(submit: str) -> None:
    class Watching(Checked):
        def on_validation_epoch_end(self) -> None:
            on_server.append(published(server, self))
            progress.append(accepted(server))

    on_server: list[dict[str, torch.Tensor]] = []
    progress: list[int] = []
    module = Watching()
    config = RunConfig(submit=submit, local_steps=4 if submit == "update" else 1, outer="nesterov(lr=0.7)")
    with ServerThread(config) as server:
        ours = trainer(AsyncWANStrategy(server.address), val_check_interval=0.5, max_epochs=2)
        ours.fit(module, loader(), loader(16))
        at_end = published(server, module)
    assert len(on_server) == len(module.validated) == 4
    for seen, held in zip(module.validated, on_server, strict=True):
        assert furthest(seen, held) == 0.0
    assert progress == [3, 6, 9, 12], "a validation in the middle of a round loses no step"
    assert furthest(state(module), at_end) == 0.0, "the fit ends with the published parameters"
    ours.test(module, loader(16), verbose=False)
    assert furthest(state(module), at_end) == 0.0


def test_the_best_checkpoint_is_tested(server: ServerThread, tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val_loss", mode="max", save_top_k=1)
    module = Checked()
    ours = trainer(AsyncWANStrategy(server.address), callbacks=[best], enable_checkpointing=True, max_epochs=3)
    ours.fit(module, loader(), loader(16))
    assert "epoch=0" in best.best_model_path, "the worst is the first"
    [found] = ours.test(module, loader(16), ckpt_path="best", verbose=False)
    assert found["test_loss"] == pytest.approx(float(best.best_model_score))
    assert furthest(state(module), module.validated[0]) == 0.0


def test_a_checkpoint_in_the_middle_of_a_round_holds_published_parameters(server: ServerThread, tmp_path: Path) -> None:
    every = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    module = Net()
    held = {}

    class Watching(ModelCheckpoint):
        def on_train_batch_end(self, *_: Any) -> None:
            if ours.global_step % 3 == 0:
                held[ours.global_step] = (published(server, module), accepted(server))

    watching = Watching(tmp_path / "none", save_top_k=0)
    ours = trainer(
        AsyncWANStrategy(server.address), callbacks=[every, watching], enable_checkpointing=True, max_epochs=1
    )
    ours.fit(module, loader())
    for step in (3, 6):
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        assert furthest(saved["state_dict"], held[step][0]) == 0.0
        assert held[step][1] == step


def test_early_stopping_and_timer(server: ServerThread) -> None:
    stop = EarlyStopping("val_loss", patience=1, min_delta=100.0)
    ours = trainer(AsyncWANStrategy(server.address), callbacks=[stop, Timer("00:01:00:00")], max_epochs=10)
    ours.fit(Checked(), loader(), loader(16))
    assert stop.stopped_epoch == 1
    assert accepted(server) == ours.global_step == 2 * STEPS


def test_the_names_of_learning_rates_are_unchanged(server: ServerThread, tmp_path: Path) -> None:
    def configure(module: Any) -> Any:
        optimizer = AdamW(module.parameters(), lr=0.02)
        return [optimizer], [{"scheduler": ExponentialLR(optimizer, 0.5), "interval": "step"}]

    rows = []
    for strategy in ("auto", AsyncWANStrategy(server.address)):
        monitor = LearningRateMonitor("step")
        logger = CSVLogger(tmp_path / str(len(rows)))
        trainer(strategy, callbacks=[monitor], logger=logger, max_epochs=1, log_every_n_steps=1).fit(
            Net(configure), loader()
        )
        rows.append(list(logger.experiment.metrics))
        assert list(monitor.lrs) == ["lr-AdamW"]
    assert [row.get("lr-AdamW") for row in rows[0]] == [row.get("lr-AdamW") for row in rows[1]]


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_loggers(server: ServerThread, tmp_path: Path, kind: Any) -> None:
    logger = kind(tmp_path, name="run")
    ours = trainer(AsyncWANStrategy(server.address), logger=logger, max_epochs=1, log_every_n_steps=1)
    ours.fit(Checked(), loader(), loader(16))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["version_0"]
    assert ours.log_dir == str(tmp_path / "run" / "version_0")
    assert any((tmp_path / "run" / "version_0").iterdir())


def test_stochastic_weight_averaging(tmp_path: Path) -> None:
    """Equal to a single device: the average is of the models of the epochs, and is what the fit ends with."""

    def train(strategy: Any) -> Any:
        torch.manual_seed(3)
        module = Normed()
        averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1, annealing_epochs=1)
        trainer(strategy, callbacks=[averaging], max_epochs=4, default_root_dir=tmp_path).fit(module, loader())
        return module

    theirs = train("auto")
    with ServerThread(RunConfig(local_steps=1)) as server:
        ours = train(AsyncWANStrategy(server.address))
        assert furthest(published(server, ours), {k: state(ours)[k] for k in published(server, ours)}) > 1e-5
    assert furthest(state(theirs), state(ours)) <= 1e-5


class Normed(Net):
    def __init__(self, configure: Any = None) -> None:
        super().__init__(configure)
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))


def test_an_average_of_weights_is_validated_saved_and_kept(server: ServerThread, tmp_path: Path) -> None:
    def train(strategy: Any, folder: Path) -> Any:
        torch.manual_seed(3)
        module = Checked()
        callbacks = [EMAWeightAveraging(decay=0.5), ModelCheckpoint(folder, save_last=True)]
        trainer(strategy, callbacks=callbacks, enable_checkpointing=True).fit(module, loader(), loader(16))
        return module, torch.load(folder / "last.ckpt", weights_only=True)

    theirs, their_file = train("auto", tmp_path / "theirs")
    ours, our_file = train(AsyncWANStrategy(server.address), tmp_path / "ours")
    assert furthest(state(theirs), state(ours)) <= 1e-6
    assert furthest(theirs.validated[1], ours.validated[1]) <= 1e-6
    for key in ("state_dict", "current_model_state"):
        assert furthest(their_file[key], our_file[key]) <= 1e-6


class Tuned(Net):
    """With a learning rate and a batch size to be found; counts what was submitted when training proper begins."""

    def __init__(self, server: ServerThread) -> None:
        super().__init__(lambda module: sgd(module, module.lr))
        self.lr, self.batch_size, self.server = 0.1, 4, server
        self.before: list[int] = []
        self.start: dict[str, torch.Tensor] = {}

    def train_dataloader(self) -> Any:
        return DataLoader(data(), self.batch_size)

    def on_train_start(self) -> None:
        if any(type(callback).__name__ == "First" for callback in self.trainer.callbacks):
            self.before.append(accepted(self.server))
            self.start = state(self)


def finder(kind: str) -> Any:
    return (
        LearningRateFinder(num_training_steps=24)
        if kind == "rate"
        else BatchSizeFinder(init_val=4, max_trials=2, steps_per_trial=2)
    )


@pytest.mark.parametrize("kind", ["rate", "size"])
@pytest.mark.parametrize("submit", ["update", "gradient"])
@pytest.mark.filterwarnings("ignore:.*(checkpoint directory|smaller than the logging interval).*")
def test_a_finder_as_a_callback_submits_nothing(kind: str, submit: str, tmp_path: Path) -> None:
    with ServerThread(RunConfig(submit=submit, local_steps=1)) as server:
        module = Tuned(server)
        begun = state(module)
        ours = trainer(AsyncWANStrategy(server.address), callbacks=[finder(kind)], default_root_dir=tmp_path)
        ours.fit(module)
        assert module.before == [0]
        assert accepted(server) == ours.global_step > 0
    assert furthest(begun, module.start) == 0.0
    assert (module.lr, module.batch_size) != (0.1, 4), "something was found"


@pytest.mark.filterwarnings("ignore:.*(checkpoint directory|smaller than the logging interval).*")
def test_a_finder_by_the_tuner_submits_nothing(server: ServerThread, tmp_path: Path) -> None:
    module = Tuned(server)
    ours = trainer(AsyncWANStrategy(server.address), default_root_dir=tmp_path)
    tuner = Tuner(ours)
    assert tuner.lr_find(module, num_training=24).suggestion() is not None
    tuner.scale_batch_size(module, max_trials=2, steps_per_trial=2)
    assert accepted(server) == 0
    assert not server.coordinator.run.members.workers()
    ours.fit(module)
    assert accepted(server) == ours.global_step


class AtTheEpochsStart(LearningRateFinder):
    """Lightning's own recipe for searching when an epoch begins: steps count already."""

    before: int = -1

    def on_fit_start(self, *_: Any) -> None: ...

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self.before < 0:
            self.before = accepted(pl_module.server)
            self.lr_find(trainer, pl_module)
            self.after = accepted(pl_module.server)
            self.start = state(pl_module)


@pytest.mark.filterwarnings("ignore:.*(checkpoint directory|smaller than the logging interval).*")
def test_a_finder_at_the_start_of_an_epoch_submits_nothing(tmp_path: Path) -> None:
    with ServerThread(RunConfig(local_steps=4)) as server:
        module, search = Tuned(server), AtTheEpochsStart(num_training_steps=24)
        begun = state(module)
        ours = trainer(AsyncWANStrategy(server.address), callbacks=[search], default_root_dir=tmp_path)
        ours.fit(module)
        assert len(search.optimal_lr.results["lr"]) >= 12, "the trial ran"
        assert (search.before, search.after) == (0, 0)
        assert furthest(begun, search.start) == 0.0
        assert accepted(server) == ours.global_step == 2 * SAMPLES // 4


class Halfway(Checked):
    """Keeps its parameters as they are when the fourth batch begins, after a validation."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == STEPS // 2:
            self.live = state(self)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(state(self))
        if self.path is not None:
            self.trainer.save_checkpoint(self.path)

    path: Path | None = None


def test_what_waits_for_a_quorum_is_not_validated_and_not_lost(tmp_path: Path) -> None:
    torch.manual_seed(3)
    alone = Halfway()
    trainer(max_epochs=1, val_check_interval=0.5).fit(alone, loader(), loader(16))
    torch.manual_seed(3)
    module = Halfway()
    module.path = tmp_path / "saved while validating.ckpt"
    start = state(module)
    with ServerThread(RunConfig(local_steps=2, quorum=2)) as server:
        ours = trainer(AsyncWANStrategy(server.address), val_check_interval=0.5, max_epochs=1)
        ours.fit(module, loader(), loader(16))
    assert [furthest(seen, start) for seen in module.validated] == [0.0] * 4, "nobody else came, nothing was published"
    assert furthest(module.live, start) > 1e-2
    assert furthest(module.live, alone.live) <= 1e-6


def test_fast_dev_run_and_barebones(server: ServerThread) -> None:
    trainer(AsyncWANStrategy(server.address), fast_dev_run=2).fit(Checked(), loader(), loader(16))
    assert accepted(server) == 2
    own = {"logger": None, "enable_checkpointing": None, "enable_progress_bar": None, "enable_model_summary": None}
    bare = trainer(AsyncWANStrategy(server.address), barebones=True, num_sanity_val_steps=None, **own)
    bare.fit(Bare(), loader())
    assert accepted(server) == 2 * STEPS, "the first two batches of the first pass were trained on before"


class Bare(Net):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(batch)


def test_a_batch_of_any_kind_is_counted(server: ServerThread) -> None:
    class Mapped(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.loss((batch["x"], batch["y"]))

    rows = [{"x": x, "y": y} for x, y in (data()[i] for i in range(SAMPLES))]
    trainer(AsyncWANStrategy(server.address), max_epochs=1).fit(Mapped(), DataLoader(rows, BATCH))
    [member] = server.coordinator.run.members
    assert member.samples == SAMPLES
