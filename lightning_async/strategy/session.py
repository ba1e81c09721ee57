"""One fit's server, launch group and engine: opened before the model is set up, closed in teardown.

Free of Lightning. The strategy's hooks say when; this file says what. After `close` nothing of it is left, whatever
happened: no process, thread, port or patched optimizer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_async.errors import AsyncWANError, ConfigError, RefusedError
from lightning_async.keeping import StateDir
from lightning_async.server.rules import settled
from lightning_async.strategy.arguments import Given
from lightning_async.strategy.data import Run, Shares
from lightning_async.strategy.embedded import EmbeddedServer
from lightning_async.strategy.group import Group, Place, next_name
from lightning_async.strategy.launch import Watch
from lightning_async.strategy.supervisor import Supervisor
from lightning_async.transport.keys import key_for
from lightning_async.worker import Attachment, Engine, Identity
from lightning_async.worker import requests as ask
from lightning_async.worker.board import Board
from lightning_async.worker.courier import GOODBYE_S
from lightning_async.worker.leaving import leave
from lightning_async.worker.line import Line

HASTY_S = 0.2  # how long the server may take to answer a goodbye when training did not end well
log = logging.getLogger("lightning_async")


class Session:
    """The run as one process takes part in it.

    Args:
        given: the strategy's arguments.
        place: of this process.
        state_dir: of an embedded server.
        name: of this worker; empty for one that is made up.
        give_up: asked in every wait; True when training is being stopped.
        running: rank -> whether that process of the launch still runs, as far as this one can know.
        line: over which the server is dialled; closed in the end.
        key: file with the key for the server; None for the usual one (transport/keys.py).
    """

    def __init__(
        self,
        given: Given,
        place: Place,
        state_dir: str | StateDir | None,
        name: str,
        give_up: Callable[[], bool],
        running: Callable[[int], bool],
        line: Line,
        key: str | None = None,
    ) -> None:
        self._given, self._name, self._running = given, name, running
        self._line = line
        self._asked_to_give_up = give_up
        self._place = place if place.alone else replace(place, group=next_name(place.group))
        self._state_dir = state_dir
        self._key = None if place.embedded else key_for(place.address, key)
        if self._key is not None:
            line.forbid_fallback()
        self._watch = Watch()
        self._server: Supervisor | None = None
        self._closing = False
        self._group: Group | None = None
        self._board: Board | None = None  # of a worker that stands for itself, once it has left
        self._attachment: Attachment | None = None
        self.engine: Engine | None = None
        self.shares = Shares(Run(lambda: self.engine, self._workers))
        self.report: dict[str, Any] = {}

    def open(self) -> None:
        """Start the embedded server, if it is ours to start; it comes up while data and model are being prepared."""
        if self._place.embedded:
            config = self._given.config(self._place.size)
            config = config if self._line.real else settled(config, far=True)
            folder, validation = self._state_dir, self._given.validation
            self._server = Supervisor(
                lambda address: EmbeddedServer.begin(config, folder, address=address, validation=validation),
                self._place.address,
                again=folder is not None,
            )

    def _give_up(self) -> bool:
        """Asked in every wait; also raises what `check_server` raises."""
        return self.check_server() or self._asked_to_give_up()

    def check_server(self) -> bool:
        """False; raises NetworkError once the embedded server is gone for good, with what it said last."""
        if self._server is not None and not self._closing:
            self._server.check()
        return False

    @property
    def address(self) -> str:
        """Where the run's server listens, once it does. Raises as `EmbeddedServer.wait_until_ready`."""
        server = self._server
        if server is None:
            return self._place.address
        if not server.address:
            server.wait_until_ready()
            print(f'join: AsyncWANStrategy("{server.address}")', flush=True)
        return server.address

    def _make_board(self) -> Board:
        return Board(self.address, self._place.group, self._give_up, self._line.connect, self._key)

    def _gathered(self) -> Group | None:
        """The group of this launch; None for a process that stands for itself."""
        if self._group is None and not self._place.alone:
            board = self._make_board()
            self._group = Group(board, self._place, self._running, self._give_up)
        return self._group

    def join(self, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Engine:
        """Join the run with `module`. Raises LayoutError, ConfigError, RefusedError, UnreachableError."""
        identity = Identity(name=self._name, group=self._place.group, rank=self._place.rank, key=self._key)
        claims = {} if self._place.embedded else self._given.claims()
        self.engine = Engine(self.address, module, optimizers, identity, claims, self._give_up, self._line.world)
        self.engine.start()
        self._attachment = Attachment(self.engine)
        return self.engine

    def _workers(self) -> int:
        """Workers expected, of which this is one; asked before it has joined when a schedule is made from it."""
        if self.engine is not None:
            return self.engine.workers
        if self._place.embedded:
            return self._place.size
        board = self._make_board()
        try:
            state = board.status()
        finally:
            board.close()
        return max(int(state["config"]["workers"]), int(state["live"]) + 1)

    def arm(self) -> None:
        """Wait for the other workers of the launch, then let steps count."""
        group = self._gathered()
        if group is not None:
            group.meet()
        self._require().arm()

    def left_over(self) -> bool | None:
        """After an epoch that found no more samples (None after any other): whether others have left something, once
        all that they took is done or has come back."""
        leases = self.shares.through
        return None if leases is None else leases.left_over(self._give_up)

    def finish(self) -> None:
        """Send what is not sent, and end with the published parameters in the model: after the last rank's last
        update, so that every rank of a launch ends with the same ones.

        A rank that is through leaves the run before it waits for the others, so that no quorum waits for it.
        """
        engine = self._require()
        engine.align()
        engine.disarm()
        if self._group is not None:
            engine.close()
            self._group.part()
            if not self._give_up():
                engine.replica.load(self._group.board.parameters(engine.shared.layout))
        elif engine.replica.pending:
            self._board = self._make_board()
            leave(engine, self._board)

    def prepared(self, local_rank: int, node: int) -> None:
        """Rank 0 of a node says that the data is prepared; the node's other ranks wait for it."""
        group = self._gathered()
        if group is not None:
            group.prepared(local_rank, node)

    def agree(self, key: str, value: str) -> str:
        """The launch group's value of `key`: rank 0's."""
        group = self._gathered()
        return value if group is None else group.agree(key, value)

    def adopt(self, key: str, value: str | None) -> str | None:
        """Rank 0 offers `value`; the others wait for it, for as long as rank 0 trains."""
        return value if self._group is None else self._group.adopt(key, value)

    def optimizer_state(self) -> dict[str, Tensor]:
        """The server's optimizer state by name, for a checkpoint."""
        return ask.fetch_state(self._asker())

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Give the server a checkpoint's optimizer state; when the run has begun already, its own stays."""
        if not state:
            return
        try:
            ask.load_state(self._require(), state)
        except RefusedError as error:
            log.warning("the checkpoint's outer optimizer state was not taken, the run's own stays: %s", error.detail)

    def leave(self) -> None:
        """The training is over: take leave of the run. The group stays for what the ranks still have to say."""
        if self.engine is not None and not self.report:
            try:
                self.report = ask.status(self._asker())
            except AsyncWANError as error:
                log.debug("no report: %s", error)
        self._detach()
        if self.engine is not None:
            self.engine.close()

    def tell_others(self, hurry: Callable[[], bool]) -> None:
        """Where our server is gone for good: give the other workers the time to learn why, unless `hurry()`."""
        if self._server is not None:
            self._server.tell(lambda: not any(map(self._running, range(1, self._place.size))), hurry)

    def close(self, failed: bool) -> None:
        """End this process's part. Rank 0 of a run that went well waits here until the others are through."""
        self._closing = True
        try:
            if failed:
                self._detach()
            else:
                self.leave()
                self._see_off()
        except AsyncWANError as error:
            log.warning("while leaving the run: %s", error)
        finally:
            self._end(failed)

    def _see_off(self) -> None:
        """The server is rank 0's, and so are the processes; the others say when they need neither. From then on rank 0
        may end, and a rank that is slower must not be taken for an orphan."""
        if self._group is None:
            return
        if self._place.rank != 0:
            self._watch.close()
            self._group.done()
        elif self._server is not None:
            self._group.wait_until_done()

    def _end(self, failed: bool) -> None:
        why = "failed" if failed else "done"
        goodbye_s = 0.0 if failed and self._server is not None else HASTY_S if failed else GOODBYE_S
        steps: list[Callable[[], object]] = [self._detach]
        board = self._group.board if self._group is not None else self._board
        if board is not None:
            steps.append(lambda: board.close(goodbye_s))
        if self.engine is not None:
            engine = self.engine
            steps.append(lambda: engine.close(why, goodbye_s))
        steps.append(self._line.close)
        if self._server is not None:
            steps.append(self._server.quit)
        steps.append(self._watch.close)
        for step in steps:
            try:
                step()
            except AsyncWANError as error:
                log.warning("while leaving the run: %s", error)

    def _detach(self) -> None:
        if self._attachment is not None:
            self._attachment.detach()
        self.shares.restore()

    def _asker(self) -> ask.Asker:
        """Who can still ask the server: the engine leaves before the group does."""
        return self._group.board if self._group is not None else self._board or self._require()

    def _require(self) -> Engine:
        assert self.engine is not None
        return self.engine


def check_module(module: Any, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raises ConfigError for a model that cannot be trained here."""
    trained = {id(p): p.device for p in module.parameters() if p.requires_grad}
    stepped = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if not stepped & trained.keys():  # Lightning makes a mock of None
        raise ConfigError("configure_optimizers gave no optimizer of the model: there is nothing to train together")
    if len(devices := set(trained.values())) > 1:
        raise ConfigError(f"the model lies on {sorted(map(str, devices))}; one worker trains on one device for now")
