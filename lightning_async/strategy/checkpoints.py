"""The strategy's hooks about checkpoints, and where rank 0 has written them.

What is saved while training goes on is the published parameters: everything this worker has made is accepted by the
server first. Beside the module's weights a checkpoint holds the server's optimizer state: in gradient mode in the
user's own optimizer states, as if they had been stepped here; else, with the version, under "async_wan". So the file
is an ordinary one, which any other strategy loads.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_async.errors import AsyncWANError
from lightning_async.strategy.ranks import RankHooks
from lightning_async.strategy.session import Session

STATE_KEY = "async_wan"
PATHS = ("best_model_path", "last_model_path", "best_k_models", "kth_best_model_path", "dirpath")
TUNERS_OWN = (".lr_find_", ".scale_batch_size_")  # files to which a tuner saves what it restores after its trials
log = logging.getLogger("lightning_async")


class CheckpointHooks(RankHooks):
    """Mixed into AsyncWANHooks, which has what is declared here."""

    lightning_module: Any
    optimizers: Any
    checkpoint_io: Any

    @property
    def _shares_data(self) -> bool:
        raise NotImplementedError

    _trainer: Any
    _engine: Any
    _session: Session | None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._fits = 0
        self._shown = False  # whether the live model is the published one, and callbacks may exchange it
        self._last: dict[str, Any] = {}  # what save_checkpoint adds, from the end of the last fit
        self._agreed: dict[str, str] = {}  # the folders of logs and checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's weights; while training goes on, of the published parameters."""
        engine = self._engine
        if engine is None or not engine.armed or self._shown or not self.is_global_zero:
            return super().lightning_module_state_dict()  # type: ignore[misc,no-any-return]
        try:
            engine.align()
        except AsyncWANError as error:
            self._without("the newest published parameters", error)
        state = super().lightning_module_state_dict()  # type: ignore[misc]
        if engine.replica.pending:
            state = {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
        engine.release()
        return state  # type: ignore[no-any-return]

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        engine, session = self._engine, self._session
        if engine is None or session is None or engine.config.submit == "update" or not self.is_global_zero:
            return super().optimizer_state(optimizer)  # type: ignore[misc,no-any-return]
        self._take_moments(session, engine)
        state = super().optimizer_state(optimizer)  # type: ignore[misc]
        if engine.armed:
            self._drop_moments()
        return state  # type: ignore[no-any-return]

    def _take_moments(self, session: Session, engine: Any) -> None:
        """Put the server's optimizer state into the user's optimizers."""
        by_name = dict(zip(engine.shared.names, engine.shared.parameters, strict=True))
        for path, value in self._server_state(session).items():
            index, _, rest = path.partition("/")
            name, _, key = rest.rpartition("/")
            parameter = by_name[name]
            self.optimizers[int(index)].state[parameter][key] = value.to(parameter.device) if value.dim() else value

    def _drop_moments(self) -> None:
        """In gradient mode the server has them; here they would be old after one step, and cost memory."""
        for optimizer in self.optimizers:
            optimizer.state.clear()

    def _server_state(self, session: Session) -> dict[str, Tensor]:
        """For a checkpoint; one that is made because something broke must not break because of it."""
        try:
            return session.optimizer_state()
        except AsyncWANError as error:
            self._without("the server's optimizer state", error)
            return {}

    def _without(self, what: str, error: AsyncWANError) -> None:
        if not self._trainer.interrupted:
            raise error
        log.warning("this checkpoint lacks %s: %s", what, error)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        super().load_optimizer_state_dict(checkpoint)  # type: ignore[misc]
        engine, session = self._engine, self._session
        if engine is None or session is None:
            return
        said = disagreement(checkpoint.get(STATE_KEY, {}), engine.found, engine.address)
        said = said or (begins_anew(checkpoint, engine.found, engine.address) if self._shares_data else "")
        if said and self.is_global_zero:
            log.warning("%s", said)
        if engine.config.submit == "gradient":
            session.load_optimizer_state(_moments(engine, self.optimizers))
            self._drop_moments()
        else:
            session.load_optimizer_state(checkpoint.get(STATE_KEY, {}).get("outer", {}))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        tuning = Path(filepath).name.startswith(TUNERS_OWN)
        if not self.is_global_zero and not tuning:
            return
        added = {} if tuning else self._state_of_run()
        if added:
            checkpoint[STATE_KEY] = added
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def _state_of_run(self) -> dict[str, Any]:
        engine, session = self._engine, self._session
        if engine is None or session is None:
            return self._last
        outer = self._server_state(session) if engine.config.submit == "update" else {}
        run_id = "" if engine.found is None else engine.found.run_id
        return {"run_id": run_id, "version": engine.replica.version, "worker": engine.name, "outer": outer}

    def _keep_for_later(self, session: Session, engine: Any) -> None:
        """Training is over: what a checkpoint that is made after the fit will need."""
        if not self.is_global_zero:
            return
        try:
            self._last = self._state_of_run()
            if engine.config.submit == "gradient":
                self._take_moments(session, engine)
        except AsyncWANError as error:
            log.warning("a checkpoint made after this fit will lack the server's optimizer state: %s", error)

    def _share_checkpoints(self) -> None:
        """Every rank of the launch learns where rank 0 has written, so that ckpt_path="best" works on all."""
        if self._session is None or self._group_size == 1:
            return
        callbacks = {c.state_key: c for c in self._trainer.checkpoint_callbacks}
        mine = {key: {name: _plain(getattr(c, name, None)) for name in PATHS} for key, c in callbacks.items()}
        text = self._session.adopt(f"checkpoints/{self._fits}", json.dumps(mine) if self.is_global_zero else None)
        for key, paths in json.loads(text or "{}").items():
            for name, value in paths.items():
                if key in callbacks and hasattr(callbacks[key], name):
                    setattr(callbacks[key], name, value)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """The identity, but for the folders of logs and checkpoints: those are rank 0's on every rank of a launch."""
        if self._group_size == 1 or not isinstance(obj, (str, os.PathLike)):
            return obj
        key = _path_key(sys._getframe(1))
        if key and self._session is not None:
            self._agreed[key] = self._session.agree(key, str(obj))
        return self._agreed.get(key, obj)


def disagreement(saved: Mapping[str, Any], found: Any, address: str) -> str:
    """Where a checkpoint and the run that a worker has joined are not the same, in words; empty where they are.

    `saved`: what save_checkpoint added; `found`: the run's Welcome. A run that has begun keeps its own parameters.
    """
    if (
        found is None
        or found.version < 0
        or (saved.get("run_id"), saved.get("version")) == (found.run_id, found.version)
    ):
        return ""
    ours = "is of this run" if saved.get("run_id") == found.run_id else "is of another run"
    of = f"{ours}, at version {saved['version']}" if "version" in saved else "is of no run with a server"
    return (
        f"the checkpoint {of}; the run at {address} is at version {found.version}, and its parameters win: they stand "
        "in the server and its state_dir. To go on from the checkpoint, begin a run without that state_dir; to have "
        "the run's parameters in a checkpoint, save one now, or: lightning-async replay STATE_DIR --out FILE.ckpt"
    )


def begins_anew(checkpoint: Mapping[str, Any], found: Any, address: str) -> str:
    """What is trained on twice because this checkpoint was made in the middle of an epoch, and the server, which keeps
    the books of that, is a new one; empty where nothing is."""
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
    batches = progress.get("current", {}).get("processed", 0)
    if found is None or found.version >= 0 or not batches or progress.get("is_last_batch", False):
        return ""
    return (
        f"the checkpoint is from the middle of an epoch, after {batches} batches of the worker that made it, and the "
        f"server at {address} is new: it does not know which samples these and the other workers' were, so the pass "
        "over the data begins at its first sample, and they are trained on once more. To train on each sample once, "
        "go on with the server's state_dir, which has the books, or with a checkpoint from the end of an epoch"
    )


def _moments(engine: Any, optimizers: Any) -> dict[str, Tensor]:
    """The state of `optimizers` as `<optimizer>/<parameter>/<key>`."""
    names = {id(p): name for name, p in zip(engine.shared.names, engine.shared.parameters, strict=True)}
    return {
        f"{index}/{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for index, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state.items()
        if id(parameter) in names
        for key, value in state.items()
        if value is not None
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): float(v) for k, v in value.items()}
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def _path_key(frame: Any) -> str:
    """Which folder a `broadcast` is about, from who asks; empty for anything else."""
    asker, function = frame.f_locals.get("self"), frame.f_code.co_name
    if function == "log_dir":
        return "log_dir"
    state_key = getattr(asker, "state_key", None)
    return f"dirpath/{state_key}" if function == "setup" and state_key else ""
