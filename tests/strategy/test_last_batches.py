"""What is left over at the end of something: batches that no step follows, less than a batch, a fit that was cut off, a
loader that is made anew with other batches. Nobody waits for it for ever, and nothing is trained on twice."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from eventually import ENOUGH_S
from lightning.pytorch.callbacks import ModelCheckpoint
from models import BATCH, SAMPLES, STEPS, Numbered, trainer
from test_passes import ONE, Taking, ledger
from test_shares import Listing, numbered
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_async import AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.server import ServerThread


class Accumulating(Listing):
    """A script that accumulates gradients by itself, and has not stepped on those of its last batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.manual_backward(super().training_step(batch, batch_idx))
        if not self.trainer.is_last_batch:
            optimizer: Any = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()


class Silent(Listing):
    """Its last batch gives no loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        loss = super().training_step(batch, batch_idx)
        return None if self.trainer.is_last_batch else loss


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("kind", [Accumulating, Silent])
def test_nobody_waits_for_what_no_step_has_followed(kind: type[Listing]) -> None:
    """Two workers would wait for each other's last batch, and hand it over when it is overdue, for ever."""
    both = threading.Barrier(2, timeout=ENOUGH_S)

    class Meeting(kind):  # type: ignore[misc,valid-type]
        def on_train_start(self) -> None:
            both.wait()

    modules = [Meeting(), Meeting()]
    with ServerThread(RunConfig(local_steps=1, workers=2)) as server:
        fits = [trainer(AsyncWANStrategy(server.address), max_epochs=1) for _ in modules]
        threads = [
            threading.Thread(target=fit.fit, args=(module, numbered()), daemon=True)
            for fit, module in zip(fits, modules, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(ENOUGH_S)
        state = ledger(server).state()
        assert not any(thread.is_alive() for thread in threads)
    assert state["aside"] == BATCH * sum(bool(module.batches) for module in modules) > 0
    assert state["applied"] == SAMPLES - state["aside"]
    assert (state["passes"], state["returned"]) == (1, {"no step": state["aside"]})


def test_a_second_fit_begins_with_a_whole_batch() -> None:
    module = Listing()
    with ServerThread(ONE) as server:
        for _ in range(2):
            ours = trainer(AsyncWANStrategy(server.address), max_epochs=2)
            ours.fit(module, DataLoader(Numbered(50), BATCH, drop_last=True))
        assert ledger(server).applied == 4 * 50, "2 samples a pass wait for the next one"
    assert ours.global_step == 13


def test_a_run_of_so_many_passes_ends_though_there_is_less_than_a_batch_left() -> None:
    module = Listing()
    with ServerThread(RunConfig(local_steps=2, epochs=2)) as server:
        data = DataLoader(Numbered(50), BATCH, drop_last=True)
        trainer(AsyncWANStrategy(server.address), max_epochs=9).fit(module, data)
        assert server.coordinator.run.ended == "2 of 2 passes are applied, but for 4 samples: no whole batch"
    assert len(module.batches) == 12


class Breaking(Listing):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if (self.current_epoch, batch_idx) == (1, 3):
            raise KeyError("broken")


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:You're resuming from a checkpoint")
def test_a_fit_that_goes_on_from_a_checkpoint_makes_the_epochs_that_were_asked_for(tmp_path: Path) -> None:
    """The first one ends in the middle of its second epoch, of which it has leased everything."""
    first, second = Breaking(), Listing()

    def fit(module: Listing, path: str | None) -> Any:
        saving = ModelCheckpoint(tmp_path, every_n_train_steps=1)
        ours = trainer(AsyncWANStrategy(server.address), max_epochs=3, callbacks=[saving], enable_checkpointing=True)
        ours.fit(module, numbered(), ckpt_path=path)
        return saving

    with ServerThread(ONE) as server:
        with pytest.raises(KeyError, match="broken"):
            fit(first, None)
        fit(second, str(next(tmp_path.glob("*.ckpt"))))
        assert (ledger(server).passes, ledger(server).applied) == (3, 3 * SAMPLES)
    assert first.samples + second.samples == 3 * list(range(SAMPLES))


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_checkpoint_of_an_epoch_that_went_on_says_of_as_many_as_were_asked_for(tmp_path: Path) -> None:
    """Another worker dies while we wait at the end, and its samples make one more, short epoch. The same script that is
    started again with that checkpoint must find that it is done, and one that asks for another epoch must make it."""

    def fit(epochs: int, path: str | None) -> tuple[Listing, Any]:
        module, saving = Listing(), ModelCheckpoint(tmp_path, save_top_k=-1)
        ours = trainer(
            AsyncWANStrategy(server.address, name="ours"),
            max_epochs=epochs,
            callbacks=[saving],
            enable_checkpointing=True,
        )
        ours.fit(module, numbered(), ckpt_path=path)
        return module, ours

    with ServerThread(RunConfig(local_steps=2, workers=2)) as server:
        other = Taking(server, Listing())
        other.take(BATCH)
        with other.dying(server):
            first, ours = fit(1, None)
        path = str(next(tmp_path.glob(f"*step={ours.global_step}.ckpt")))
        done = fit(1, path)
        again = fit(2, path)
    assert sorted(first.samples) == list(range(SAMPLES))
    assert (ours.current_epoch, done[0].samples, done[1].current_epoch) == (2, [], 1)
    assert (sorted(again[0].samples), again[1].current_epoch) == (list(range(SAMPLES)), 2)


def test_a_loader_that_is_made_anew_may_have_other_batches() -> None:
    class Growing(Listing):
        def train_dataloader(self) -> Any:
            return numbered(batch_size=BATCH * (1 + self.current_epoch))

    module = Growing()
    with ServerThread(ONE) as server:
        ours = trainer(AsyncWANStrategy(server.address), reload_dataloaders_every_n_epochs=1, max_epochs=3)
        ours.fit(module)
        assert ledger(server).passes == 3
    assert module.samples == 3 * list(range(SAMPLES))
    assert [len(batch) for batch in module.batches] == [8] * STEPS + [16] * 3 + [24] * 2
