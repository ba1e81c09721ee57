"""The strategy itself, without its Lightning base class: what happens at which of the Trainer's hooks.

Lightning exists twice, as `lightning.pytorch` and as `pytorch_lightning`; lightning.py and pytorch_lightning.py each
derive a class from this one and from their own SingleDeviceStrategy. For Lightning a worker is a world of one: every
collective is the identity, so no code path ever waits for another process but where this file says so.

The order of a fit: launcher starts the other ranks -> setup_environment opens the session -> setup joins the run with
the user's own optimizers -> barrier("run-stage") arms it, so that a tuner's trial steps before that count for nothing
-> steps -> validation on the published parameters -> on_train_end aligns and leaves -> teardown closes the session.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_async.aggregation import Aggregator
from lightning_async.codecs import Codec
from lightning_async.errors import AsyncWANError, ConfigError
from lightning_async.outer import Outer
from lightning_async.staleness import Policy, Weight
from lightning_async.strategy import launch
from lightning_async.strategy.arguments import given
from lightning_async.strategy.group import Place
from lightning_async.strategy.session import Session

STATE_KEY = "async_wan"
LAST_WORDS_S = 0.5  # once training is being stopped: how long the server may take for what a last checkpoint needs
log = logging.getLogger("lightning_async")


class AsyncWANHooks:
    """Train one model together with workers that are far apart, through a parameter server.

    Args:
        server: address of a running server, `tcp://host:port`; None starts one that lives as long as this fit. The
            environment variable LIGHTNING_ASYNC_SERVER is used when this is None.
        submit: "update" sends what a round of local steps changed; "gradient" sends every gradient and lets the
            server run the optimizer that configure_optimizers made.
        local_steps: optimizer steps in a round; default 16, in gradient mode 1.
        compression: codec of what workers send: "none", "fp16", "int8", "topk", a spec, or a codec.
        download_compression: codec of what the server sends.
        aggregation: how updates become one: "mean", "trimmed_mean(f=2)", ...
        outer: the server's optimizer for updates: "sgd(lr=1.0)", "nesterov(lr=0.7, momentum=0.9)", ...
        staleness: which updates are too old: a number of versions, or a policy.
        weight: how an update's weight falls with its staleness: "constant", "polynomial(a=0.5)", ...
        quorum: distinct workers whose updates make a step; "all" waits for every live worker.
        total_steps: end the run for everybody when the accepted updates hold this many local optimizer steps.
        state_dir: folder where an embedded server keeps its state, to be resumed by the next run.
        data: "shared" gives each worker its own samples of a data set that all have; "own" leaves the loaders alone.
        name: of this worker in status and logs; by default host, rank and a random part.
        accelerator: as for every Lightning strategy, and so are the rest.
    """

    strategy_name = "async_wan"
    # What the Lightning base class and build.py add.
    lightning_module: Any
    optimizers: Any
    checkpoint_io: Any
    _launcher: Any
    _make_launcher: Any
    _make_callback: Any
    _tell_rank: Any

    def __init__(
        self,
        server: str | None = None,
        submit: Literal["update", "gradient"] | None = None,
        local_steps: int | None = None,
        compression: str | dict[str, Any] | Codec | None = None,
        download_compression: str | dict[str, Any] | Codec | None = None,
        aggregation: str | dict[str, Any] | Aggregator | None = None,
        outer: str | dict[str, Any] | Outer | None = None,
        staleness: int | str | dict[str, Any] | Policy | None = None,
        weight: str | dict[str, Any] | Weight | None = None,
        quorum: int | Literal["all"] | None = None,
        total_steps: int | None = None,
        state_dir: str | None = None,
        data: Literal["shared", "own"] = "shared",
        name: str | None = None,
        accelerator: Any = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: Any = None,
        checkpoint_io: Any = None,
        precision_plugin: Any = None,
    ) -> None:
        super().__init__(accelerator=accelerator, checkpoint_io=checkpoint_io, precision_plugin=precision_plugin)  # type: ignore[call-arg]
        self._given = given(
            submit=submit,
            local_steps=local_steps,
            compression=compression,
            download_compression=download_compression,
            aggregation=aggregation,
            outer=outer,
            staleness=staleness,
            weight=weight,
            quorum=quorum,
            total_steps=total_steps,
        )
        self.server, self._state_dir, self._data, self._name = server, state_dir, data, name or ""
        if data not in ("shared", "own"):
            raise ConfigError(f'data: got {data!r}, expected "shared" or "own"')
        self.parallel_devices, self.cluster_environment = parallel_devices, cluster_environment
        self.num_nodes = 1
        self._session: Session | None = None
        self._first: Any = None
        self._report: dict[str, Any] = {}
        self._fits = 0
        self._agreed: dict[str, str] = {}
        self._failed = False
        self._stopping_since: float | None = None

    def summary(self) -> str:
        """This worker's state in a few words."""
        engine = self._engine
        if engine is not None:
            return repr(engine).strip("<>")
        return f"server {self.server or 'embedded'} | " + ", ".join(f"{k}={v}" for k, v in self._given.values.items())

    # The place of this process.

    @property
    def num_processes(self) -> int:
        """Workers that a launch starts on this node."""
        return len(self.parallel_devices) if self.parallel_devices else 1

    def set_world_ranks(self) -> None:
        """Called by the Trainer once devices and environment are known."""
        environment = self.cluster_environment
        self.local_rank = environment.local_rank() if environment is not None and self._group_size > 1 else 0
        self.global_rank = self._rank()
        if self.parallel_devices:
            self._root_device = self.parallel_devices[self.local_rank % len(self.parallel_devices)]
        self._tell_rank(self.global_rank)

    def _rank(self) -> int:
        environment = self.cluster_environment
        if environment is None or self._group_size == 1:
            return 0
        if type(environment).__name__ != "LightningEnvironment":
            return int(environment.global_rank())
        return int(environment.node_rank()) * self.num_processes + self.local_rank

    @property
    def _group_size(self) -> int:
        """Processes of this launch; 1 for a process that stands for itself."""
        return self.num_processes * self.num_nodes

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0 of its launch: it writes checkpoints and logs."""
        return self.global_rank == 0

    @property
    def root_device(self) -> torch.device:
        return self._root_device

    def _configure_launcher(self) -> None:
        if self.num_processes > 1:
            self._launcher = self._make_launcher()

    def _place(self) -> Place:
        environment, size = self.cluster_environment, self._group_size
        if environment is not None:
            environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        group = launch.group_of(environment, size)
        given_address = self.server or os.environ.get(launch.SERVER, "")
        if given_address:
            if self._state_dir and launch.GROUP not in os.environ:
                raise ConfigError(f"state_dir belongs to the server; {given_address} keeps its own")
            return Place(self.global_rank, size, group, given_address, embedded=False)
        told = launch.launched()
        if told is not None and size > 1:
            return Place(0, size, group, told.address, embedded=True)
        if size > 1:
            address = f"tcp://{environment.main_address}:{int(environment.main_port) + 1}"
            return Place(self.global_rank, size, group, address, embedded=self.global_rank == 0)
        return Place(0, 1, group, "tcp://127.0.0.1:0", embedded=True)

    # A fit, in the order of its hooks.

    def setup_environment(self) -> None:
        super().setup_environment()  # type: ignore[misc]
        self._failed, self._stopping_since = False, None
        if self._fitting:
            self._fits += 1
            self._session = Session(
                self._given, self._place(), self._state_dir, self._name, self._give_up, self._running
            )
            self._session.open()

    @property
    def _trainer(self) -> Any:
        return self.lightning_module.trainer

    @property
    def _fitting(self) -> bool:
        return getattr(self._trainer.state.fn, "value", "") == "fit"

    @property
    def _stopping(self) -> bool:
        """Whether training ends before its time: an exception, Ctrl+C, SIGTERM, or the death of rank 0."""
        ended = self._trainer.interrupted or self._trainer.received_sigterm
        return bool(self._failed or ended or launch.parent_gone())

    def _give_up(self) -> bool:
        """Whether nothing is worth waiting for any more."""
        if not self._stopping:
            return False
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
        return time.monotonic() - self._stopping_since > LAST_WORDS_S

    def setup(self, trainer: Any) -> None:
        super().setup(trainer)  # type: ignore[misc]
        if self._session is None:
            return
        if not self.optimizers:
            raise ConfigError("configure_optimizers gave no optimizer, so there is nothing to train together")
        self._check_module(trainer)
        self._session.join(self.lightning_module, self.optimizers)
        self._first = self._make_callback(self._session)
        trainer.callbacks.insert(0, self._first)

    def _check_module(self, trainer: Any) -> None:
        devices = {p.device for p in self.lightning_module.parameters() if p.requires_grad}
        if len(devices) > 1:
            raise ConfigError(f"the model lies on {sorted(map(str, devices))}; one worker trains on one device for now")

    def barrier(self, name: str | None = None, *args: Any, **kwargs: Any) -> None:
        if self._session is None:
            return
        if name == "pre_setup":
            node = self.cluster_environment.node_rank() if self._group_size > 1 else 0
            self._session.prepared(self.local_rank, node)
        elif name == "run-stage" and self._fitting:
            self._session.arm()

    def process_dataloader(self, dataloader: Any) -> Any:
        dataloader = super().process_dataloader(dataloader)  # type: ignore[misc]
        shares = self._session.shares if self._session is not None else None
        if shares is not None and self._trainer.training and self._data == "shared":
            shares.take(dataloader)
        return dataloader

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)  # type: ignore[misc]
        if self._session is not None and self._session.engine is not None:
            self._session.engine.count_samples(_samples(batch))

    def on_validation_start(self) -> None:
        super().on_validation_start()  # type: ignore[misc]
        engine = self._engine
        if engine is not None and engine.armed:
            engine.align()

    def on_validation_end(self) -> None:
        super().on_validation_end()  # type: ignore[misc]
        engine = self._engine
        if engine is not None and engine.armed:
            engine.release()

    def on_train_end(self) -> None:
        super().on_train_end()  # type: ignore[misc]
        if self._session is not None:
            self._session.leave()
            self._share_checkpoints()

    @property
    def address(self) -> str:
        """Where this fit's server is, for others to join, `tcp://host:port`; empty when nothing is being fitted."""
        return self._session.address if self._session is not None else ""

    @property
    def _engine(self) -> Any:
        return self._session.engine if self._session is not None else None

    def on_exception(self, exception: BaseException) -> None:
        self._failed = True
        super().on_exception(exception)  # type: ignore[misc]

    def teardown(self) -> None:
        session, self._session = self._session, None
        if self._first is not None:
            self._trainer.callbacks.remove(self._first)
            self._first = None
        try:
            if session is not None:
                failed = self._stopping
                if failed and self._launcher is not None:
                    self._launcher.kill(signal.SIGTERM)
                session.close(failed)
                self._report = session.report or self._report
                if failed and self._launcher is not None:
                    launch.reap(self._launcher.procs)
        finally:
            super().teardown()  # type: ignore[misc]

    def _running(self, rank: int) -> bool:
        """Whether the process of this launch with that rank still runs, as far as this process can know."""
        procs = self._launcher.procs if self._launcher is not None else []
        return not 0 < rank <= len(procs) or procs[rank - 1].poll() is None

    def report(self) -> dict[str, Any]:
        """The run's state when this worker left it, as `lightning-async status --json`; empty before the first fit."""
        return self._report

    # Checkpoints.

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        engine = self._engine
        if engine is not None and engine.config.submit == "gradient":
            self._take_optimizer_state(engine)
        return super().optimizer_state(optimizer)  # type: ignore[misc,no-any-return]

    def _take_optimizer_state(self, engine: Any) -> None:
        """Put the server's optimizer state into the user's optimizers: the checkpoint looks as it always does."""
        assert self._session is not None
        by_name = dict(zip(engine.shared.names, engine.shared.parameters, strict=True))
        for path, value in self._session.optimizer_state().items():
            index, _, rest = path.partition("/")
            name, _, key = rest.rpartition("/")
            parameter = by_name[name]
            self.optimizers[int(index)].state[parameter][key] = value.to(parameter.device) if value.dim() else value

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        super().load_optimizer_state_dict(checkpoint)  # type: ignore[misc]
        engine, session = self._engine, self._session
        if engine is None or session is None:
            return
        if engine.config.submit == "gradient":
            session.load_optimizer_state(self._given_optimizer_state(engine))
        else:
            session.load_optimizer_state(checkpoint.get(STATE_KEY, {}).get("outer", {}))

    def _given_optimizer_state(self, engine: Any) -> dict[str, Tensor]:
        names = {id(p): name for name, p in zip(engine.shared.names, engine.shared.parameters, strict=True)}
        return {
            f"{index}/{names[id(parameter)]}/{key}": torch.as_tensor(value)
            for index, optimizer in enumerate(self.optimizers)
            for parameter, state in optimizer.state.items()
            if id(parameter) in names
            for key, value in state.items()
        }

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        engine, session = self._engine, self._session
        tuning = engine is not None and not engine.armed and self._trainer.global_step == 0
        if not self.is_global_zero and not tuning:
            return
        if engine is not None and session is not None and not tuning:
            outer = self._outer_state(session) if engine.config.submit == "update" else {}
            checkpoint[STATE_KEY] = {"version": engine.replica.version, "worker": engine.name, "outer": outer}
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def _outer_state(self, session: Session) -> dict[str, Tensor]:
        """For a checkpoint; one that is made because something broke must not break because of it."""
        try:
            return session.optimizer_state()
        except AsyncWANError as error:
            if not self._trainer.interrupted:
                raise
            log.warning("this checkpoint lacks the server's optimizer state: %s", error)
            return {}

    def _share_checkpoints(self) -> None:
        """Every rank of the launch learns where rank 0 has written, so that ckpt_path="best" works on all."""
        if self._session is None or self._group_size == 1:
            return
        callbacks = {c.state_key: c for c in self._trainer.checkpoint_callbacks}
        mine = {key: {name: _plain(getattr(c, name, None)) for name in _PATHS} for key, c in callbacks.items()}
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

    def __getstate__(self) -> dict[str, Any]:
        """What can be copied: everything but the live run."""
        return {**self.__dict__, "_session": None, "_first": None, "_launcher": None}


_PATHS = ("best_model_path", "last_model_path", "best_k_models", "kth_best_model_path", "dirpath")


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


def _samples(batch: Any) -> int:
    """The length of the first tensor's first dimension; 1 where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return next((n for n in map(_samples, parts) if n > 1), 1)
