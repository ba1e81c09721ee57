"""The strategy itself, without its Lightning base class: what happens at which of the Trainer's hooks.

Lightning exists twice, as `lightning.pytorch` and as `pytorch_lightning`; lightning.py and pytorch_lightning.py each
derive a class from this one and from their own SingleDeviceStrategy. For Lightning a worker is a world of one: every
collective is the identity, so no code path ever waits for another process but where this file says so.

The order of a fit: launcher starts the other ranks -> setup_environment opens the session -> setup joins the run with
the user's own optimizers -> barrier("run-stage") arms it, so that a tuner's trial steps before that count for nothing
-> steps -> validation on the published parameters -> on_train_end aligns and leaves -> teardown closes the session.
"""

from __future__ import annotations

import logging
import signal
import time
from typing import Any, Literal

import torch

from lightning_async import links
from lightning_async.aggregation import Aggregator, Filter
from lightning_async.codecs import Codec
from lightning_async.errors import ConfigError
from lightning_async.keeping import StateDir
from lightning_async.links import Link
from lightning_async.outer import Outer
from lightning_async.scheduling import Predictor, Scheduler
from lightning_async.server.private import Validation
from lightning_async.staleness import Policy, Weight
from lightning_async.strategy import launch
from lightning_async.strategy.arguments import given
from lightning_async.strategy.checkpoints import CheckpointHooks
from lightning_async.strategy.epochs import terms
from lightning_async.strategy.rounds import RoundHooks
from lightning_async.strategy.session import Session, check_module
from lightning_async.strategy.trials import TrialHooks
from lightning_async.worker.line import Line
from lightning_async.worker.tampering import tampering

LAST_WORDS_S = 0.5  # once training is being stopped: how long the server may take for what a last checkpoint needs
log = logging.getLogger("lightning_async")


class AsyncWANHooks(RoundHooks, TrialHooks, CheckpointHooks):
    """Train one model together with workers that are far apart, through a parameter server.

    Args:
        server: address of a running server, `tcp://host:port`; None starts one that lives as long as this fit. The
            environment variable LIGHTNING_ASYNC_SERVER is used when this is None.
        submit: "update" sends what a round of local steps changed; "gradient" sends every gradient and lets the
            server run the optimizer that configure_optimizers made.
        local_steps: optimizer steps in a round; default 16, in gradient mode 1. "auto" fits them to speed and link.
        fragments: pieces of the model that are sent and published by turns; default 1, the whole each time.
        compression: codec of what workers send: "none", "fp16", "int8", "topk", "auto", a spec, or a codec. One that
            leaves numbers out gets error feedback around it. By default "none" within one machine, else "int8".
        download_compression: codec of what the server sends; by default exact where `compression` is, else `either()`.
        aggregation: how updates become one: "mean", "trimmed_mean(f=2)", ...
        outer: the server's optimizer for updates: "sgd(lr=1.0)", "nesterov(lr=0.7, momentum=0.9)", "heloco", ...
        staleness: which updates are too old: a number of versions, "adaptive", or another policy.
        weight: how an update's weight falls with its staleness: "polynomial(a=0.5)" (the default), "constant", ...
        quorum: distinct workers whose updates make a step; "all" waits for every live worker. By default 1, and with a
            robust rule enough of them that two thirds of the expected workers are in every step.
        mode: "sync" is short for staleness=0, quorum="all": each step is made of everybody's round from the last one.
        quarantine_below: exclude for a time a worker whose reputation (0 to 1) falls below this; needs a robust rule.
        patience_s: how long a worker may be silent; all waits for a line follow from it (docs/networks.md).
        scheduler: which shared samples a worker gets that asks: "first_come" (the default), "priority", "capability",
            "gale_shapley", "own(path='module:function')". predictor: "ewma" or "least_squares", what it plans with.
        total_steps: end the run for everybody when the accepted updates hold this many local optimizer steps.
        state_dir: folder where an embedded server keeps its state: one that dies, and the next run, go on from there. A
            `StateDir` says also how much is kept.
        validation: of an embedded server, for zeno: a function of a module, or "module:function" (server/private.py).
        data: "shared" gives each worker its own samples of data that all have; "own" leaves the loaders as they are.
        name: of this worker in status and logs; by default its key's, or host, rank and a random part.
        key: this worker's key file; by default $LIGHTNING_ASYNC_KEY or what `lightning-async join` made; "none": none.
        link: for tests and demos, a line that is worse than the real one: "cellular(loss=0.02)" (docs/networks.md).
        fallback: where to go, as long as `server` does not answer, in a network that lets only HTTP pass: "https://...".
        attack: for experiments (LIGHTNING_ASYNC_EXPERIMENT=1), what becomes of its updates: "sign_flip(k=10.0)".
        accelerator: as for every Lightning strategy, and so are the rest.
    """

    strategy_name = "async_wan"
    _make_callback: Any  # build.py adds it

    def __init__(
        self,
        server: str | None = None,
        submit: Literal["update", "gradient"] | None = None,
        local_steps: int | str | None = None,
        fragments: int | None = None,
        compression: str | dict[str, Any] | Codec | None = None,
        download_compression: str | dict[str, Any] | Codec | None = None,
        aggregation: str | dict[str, Any] | Aggregator | Filter | None = None,
        outer: str | dict[str, Any] | Outer | None = None,
        staleness: int | str | dict[str, Any] | Policy | None = None,
        weight: str | dict[str, Any] | Weight | None = None,
        quorum: int | Literal["all"] | None = None,
        mode: Literal["async", "sync"] | None = None,
        quarantine_below: float | None = None,
        patience_s: float | None = None,
        scheduler: str | dict[str, Any] | Scheduler | None = None,
        predictor: str | dict[str, Any] | Predictor | None = None,
        total_steps: int | None = None,
        state_dir: str | StateDir | None = None,
        validation: str | Validation | None = None,
        data: Literal["shared", "own"] = "shared",
        name: str | None = None,
        key: str | None = None,
        link: str | Link | None = None,
        fallback: str | None = None,
        attack: str | None = None,
        accelerator: Any = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: Any = None,
        checkpoint_io: Any = None,
        precision_plugin: Any = None,
    ) -> None:
        super().__init__(accelerator=accelerator, checkpoint_io=checkpoint_io, precision_plugin=precision_plugin)
        self._given = given(
            submit=submit,
            local_steps=local_steps,
            fragments=fragments,
            compression=compression,
            download_compression=download_compression,
            aggregation=aggregation,
            outer=outer,
            staleness=staleness,
            weight=weight,
            quorum=quorum,
            mode=mode,
            quarantine_below=quarantine_below,
            patience_s=patience_s,
            scheduler=scheduler,
            predictor=predictor,
            total_steps=total_steps,
            validation=validation,
        )
        self.server, self._state_dir, self._data, self._name = server, state_dir, data, name or ""
        if data not in ("shared", "own"):
            raise ConfigError(f'data: got {data!r}, expected "shared" or "own"')
        self._link, self._fallback = None if link is None else links.link(link), fallback
        self._attack, self._key = attack, key
        if attack is not None:
            tampering(attack, "")  # says at once what cannot be
        self.parallel_devices, self.cluster_environment = parallel_devices, cluster_environment
        self.num_nodes = 1
        self._session: Session | None = None
        self._first: Any = None
        self._report: dict[str, Any] = {}
        self._failed = self._interrupted = self._paused = False
        self._stopping_since: float | None = None

    def summary(self) -> str:
        """This worker's state in a few words."""
        engine = self._engine
        if engine is not None:
            return repr(engine).strip("<>")
        return f"server {self.server or 'embedded'} | " + ", ".join(f"{k}={v}" for k, v in self._given.values.items())

    # A fit, in the order of its hooks.

    def setup_environment(self) -> None:
        super().setup_environment()  # type: ignore[misc]
        self._failed = self._interrupted = self._paused = self._shown = False
        self._stopping_since = None
        if self._fitting:
            self._fits, self._last = self._fits + 1, {}
            line, asks = Line(self._link, self.global_rank, self._fallback), (self._give_up, self._running)
            self._session = Session(self._given, self._place(), self._state_dir, self._name, *asks, line, self._key)
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
        check_module(self.lightning_module, self.optimizers)
        engine = self._session.join(self.lightning_module, self.optimizers)
        if self._attack is not None:
            engine.tamper = tampering(self._attack, engine.name)
        self._first = self._make_callback(self._session)
        trainer.callbacks.insert(0, self._first)

    def barrier(self, name: str | None = None, *args: Any, **kwargs: Any) -> None:
        if self._session is None:
            return
        if name == "pre_setup":
            node = self.cluster_environment.node_rank() if self._group_size > 1 else 0
            self._session.prepared(self.local_rank, node)
        elif name == "run-stage" and self._fitting:
            self._session.arm()
            if self._session.shares.on_trial:
                self._trainer.fit_loop._combined_loader = None  # made again, now that what is drawn counts
        elif name == "train_dataloader()":
            self._session.shares.renew()

    def process_dataloader(self, dataloader: Any) -> Any:
        dataloader = super().process_dataloader(dataloader)  # type: ignore[misc]
        if self._session is not None and self._trainer.training and self._shares_data:
            self._session.shares.take(dataloader, *terms(self._trainer, self._engine))
        return dataloader

    @property
    def _shares_data(self) -> bool:
        """Not when the user splits the data, nor when the same few batches are to be repeated."""
        trainer = self._trainer
        splits = self._data == "own" or not trainer._accelerator_connector.use_distributed_sampler
        return not splits and not trainer.overfit_batches

    def on_validation_start(self) -> None:
        super().on_validation_start()  # type: ignore[misc]
        engine = self._engine
        if engine is not None and engine.armed:
            engine.align()
            self._shown = True

    def on_validation_end(self) -> None:
        super().on_validation_end()  # type: ignore[misc]
        engine = self._engine
        if engine is not None and engine.armed:
            engine.release()
            self._shown = False

    def on_train_end(self) -> None:
        super().on_train_end()  # type: ignore[misc]
        if self._session is not None and not self._trial:
            self._keep_for_later(self._session, self._engine)
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
        self._interrupted = isinstance(exception, KeyboardInterrupt)  # then Lightning kills the launcher's processes
        super().on_exception(exception)  # type: ignore[misc]

    def teardown(self) -> None:
        session, self._session = self._session, None
        self._trainer.callbacks = [callback for callback in self._trainer.callbacks if callback is not self._first]
        self._first = None
        try:
            if session is not None:
                failed = self._stopping
                if failed:
                    session.tell_others(lambda: self._interrupted or self._trainer.received_sigterm)
                if failed and self._launcher is not None:
                    self._launcher.kill(signal.SIGTERM)
                session.close(failed)
                self._report = session.report or self._report
                if failed and self._launcher is not None and not self._interrupted:
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

    def __getstate__(self) -> dict[str, Any]:
        """What can be copied: everything but the live run."""
        return {**self.__dict__, "_session": None, "_first": None, "_launcher": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._configure_launcher()
