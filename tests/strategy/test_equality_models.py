"""Equality with plain training for all kinds of models: buffers, ties, frozen or unused parameters, compiled parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from models import STEPS, WIDTH, Net, fit, furthest, loader, sgd, state, trainer
from test_equality import MODES, compare
from torch import Tensor, nn
from torch.optim import AdamW

from lightning_async import AsyncWANStrategy
from lightning_async.config import RunConfig
from lightning_async.errors import CallerError, RefusedError
from lightning_async.layout import shared_tensors
from lightning_async.server import ServerThread


class Normed(Net):
    """With BatchNorm: two floating buffers, and a counter that stays local."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


class Tied(Net):
    """Two layers of one weight, as a language model's embedding and head."""

    def __init__(self) -> None:
        super().__init__(lambda module: AdamW(module.parameters(), lr=0.01))
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1))
        self.net[2].weight = self.net[0].weight


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)


class Unused(Net):
    """A parameter that never gets a gradient, and a group of the optimizer that holds only it."""

    def __init__(self) -> None:
        super().__init__(self.groups)
        self.spare = nn.Linear(3, 3)

    @staticmethod
    def groups(module: Any) -> Any:
        return sgd(nn.ModuleList([module.net, module.spare]), momentum=0.9, weight_decay=0.1)


@MODES
@pytest.mark.parametrize("module", [Normed, Tied, Frozen, Unused])
def test_models(submit: str, module: Any) -> None:
    compare(submit, module)


def test_tied_weights_travel_once_and_stay_tied() -> None:
    assert [entry.name for entry in shared_tensors(Tied()).layout.parameters][:2] == ["net.0.weight", "net.0.bias"]
    with ServerThread(RunConfig(local_steps=2)) as server:
        module, _ = fit(Tied, AsyncWANStrategy(server.address))
    assert module.net[0].weight is module.net[2].weight
    assert torch.equal(module.state_dict()["net.0.weight"], module.state_dict()["net.2.weight"])


def test_integer_buffers_stay_local() -> None:
    layout = shared_tensors(Normed()).layout
    assert [entry.name for entry in layout.buffers] == ["net.1.running_mean", "net.1.running_var"]


def test_transformers_with_tied_head() -> None:
    transformers = pytest.importorskip("transformers")

    class Language(Net):
        def __init__(self) -> None:
            super().__init__(lambda module: AdamW(module.parameters(), lr=0.01))
            sizes = {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
            config = transformers.GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
            self.net = transformers.GPT2LMHeadModel(config)

        def loss(self, batch: Any) -> Tensor:
            tokens = (batch[0].abs() * 100).long() % 11
            return self.net(input_ids=tokens, labels=tokens).loss

    server = compare("gradient", Language)
    assert "net.lm_head.weight" not in [entry.name for entry in server.coordinator.run.store.layout.parameters]


class Compiled(Net):
    """One part of it is compiled (without a compiler: `eager` traces and runs)."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0] = torch.compile(self.net[0], backend="eager")


def plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}


@MODES
def test_compiled_workers_and_plain_ones_are_of_one_run(submit: str) -> None:
    theirs, _ = fit(Net)
    with ServerThread(RunConfig(submit=submit, local_steps=1)) as server:
        fit(Net, AsyncWANStrategy(server.address, data="own"), max_epochs=1)
        torch.manual_seed(3)
        compiled, again = Compiled(), trainer(AsyncWANStrategy(server.address, data="own"), max_epochs=1)
        again.fit(compiled, loader())
        assert server.coordinator.run.steps_total == 2 * STEPS
    assert furthest(state(theirs), plain_names(state(compiled))) <= (0.0 if submit == "gradient" else 1e-6)


class Silent(Net):
    """`self.log` cannot be traced."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)


def test_a_whole_compiled_module() -> None:
    theirs, _ = fit(Net)
    with ServerThread(RunConfig(local_steps=1)) as server:
        torch.manual_seed(3)
        module = Silent()
        trainer(AsyncWANStrategy(server.address)).fit(torch.compile(module, backend="eager"), loader())
        assert server.coordinator.run.steps_total == 2 * STEPS
    assert furthest(state(theirs), state(module)) <= 1e-6


class Unfreezing(BaseFinetuning):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)


def unfrozen_later(module: Any) -> Any:
    return sgd(module.net[2])


@MODES
@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
def test_a_layer_that_is_unfrozen_in_mid_run_is_refused_by_name(submit: str) -> None:
    with (
        ServerThread(RunConfig(submit=submit, local_steps=1)) as server,
        pytest.raises(CallerError, match=r"'net\.0\.weight' became trainable.*requires_grad"),
    ):
        fit(lambda: Net(unfrozen_later), AsyncWANStrategy(server.address), callbacks=[Unfreezing()])


class Adding(Net):
    """Gives its optimizer a group of parameters that were trainable, and not trained, from the start."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.optimizers(use_pl_optimizer=False).add_param_group({"params": list(self.net[0].parameters())})


def test_a_new_group_of_shared_parameters_is_fine_in_update_mode() -> None:
    compare("update", lambda: Adding(unfrozen_later))


def test_a_new_group_is_refused_by_name_in_gradient_mode() -> None:
    with (
        ServerThread(RunConfig(submit="gradient", local_steps=1)) as server,
        pytest.raises(CallerError, match=r"'net\.0\.weight' came to or left SGD"),
    ):
        fit(lambda: Adding(unfrozen_later), AsyncWANStrategy(server.address))


def test_another_model_is_refused_with_the_first_tensor_that_differs() -> None:
    class Wider(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net[0] = nn.Linear(WIDTH, 9)

    with ServerThread(RunConfig()) as server:
        fit(Net, AsyncWANStrategy(server.address))
        with pytest.raises(RefusedError, match=r"'net\.0\.weight' with shape \(9, 6\).*\(8, 6\)"):
            fit(Wider, AsyncWANStrategy(server.address))


def test_without_an_optimizer_there_is_nothing_to_share() -> None:
    class Nothing(Net):
        def configure_optimizers(self) -> None: ...

    with (
        ServerThread(RunConfig()) as server,
        pytest.warns(UserWarning, match="no optimizer"),
        pytest.raises(CallerError, match="nothing to train together"),
    ):
        fit(Nothing, AsyncWANStrategy(server.address))
