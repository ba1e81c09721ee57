"""One fit's server, notice board and engine: opened before the model is set up, closed in teardown.

Free of Lightning. The strategy's hooks say when; this file says what. After `close` nothing of it is left, whatever
happened: no process, thread, port or patched optimizer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_async.errors import AsyncWANError, ConfigError, RefusedError
from lightning_async.strategy.arguments import Given
from lightning_async.strategy.data import Shares
from lightning_async.strategy.embedded import EmbeddedServer
from lightning_async.worker import Attachment, Engine, Identity
from lightning_async.worker import requests as ask
from lightning_async.worker.board import Board

MEET_S = 60.0  # how long a run waits at its start for the workers of its launch group
PREPARE_S = 3600.0  # how long other ranks wait for rank 0 of their node to prepare the data
AWAY_S = 10.0  # after a worker has left: how long its process may take for its last words
ADOPT_S = 24 * 3600.0  # how long a rank that is through waits for rank 0's best checkpoint
log = logging.getLogger("lightning_async")


@dataclass(frozen=True)
class Place:
    """Where this process stands: its launch group, and where that group's server is or is to be."""

    rank: int
    size: int
    group: str
    address: str  # to dial; for rank 0 of an embedded run also to bind
    embedded: bool  # this process starts the server

    @property
    def alone(self) -> bool:
        return self.size == 1


class Session:
    """The run as one process takes part in it."""

    def __init__(
        self, given: Given, place: Place, state_dir: str | None, name: str, give_up: Callable[[], bool]
    ) -> None:
        self._given, self._place, self._name, self._give_up = given, place, name, give_up
        self._state_dir = state_dir
        self._server: EmbeddedServer | None = None
        self._board: Board | None = None
        self._attachment: Attachment | None = None
        self.engine: Engine | None = None
        self.shares: Shares | None = None
        self.report: dict[str, Any] = {}
        self.address = place.address

    def open(self) -> None:
        """Start the embedded server, if it is ours to start, and meet the other processes of the launch."""
        if self._place.embedded:
            config = self._given.config(self._place.size)
            self._server = EmbeddedServer.start(config, self._state_dir, address=self._place.address)
            self.address = self._server.address
            print(f'join: AsyncWANStrategy("{self.address}")', flush=True)
        if not self._place.alone:
            self._board = Board(self.address, self._place.group, self._give_up)

    def join(self, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Engine:
        """Join the run with `module`. Raises LayoutError, ConfigError, RefusedError, UnreachableError."""
        identity = Identity(name=self._name, group=self._place.group, rank=self._place.rank)
        claims = {} if self._place.embedded else self._given.claims()
        self.engine = Engine(self.address, module, optimizers, identity, claims, self._give_up)
        self.engine.start()
        self._attachment = Attachment(self.engine)
        self.shares = Shares(self.engine)
        return self.engine

    def arm(self) -> None:
        """Wait for the other workers of the launch, then let steps count."""
        if self._board is not None:
            self._meet(self._board)
        self._require().arm()

    def _meet(self, board: Board) -> None:
        """A worker that has arrived stays so, even when it is through before a slow one has looked."""
        board.offer(f"arrived/{self._place.rank}", "yes")
        deadline = time.monotonic() + MEET_S
        missing = set(range(self._place.size))
        while missing and time.monotonic() < deadline and not self._give_up():
            missing -= {rank for rank in missing if board.read(f"arrived/{rank}") is not None}
            if missing:
                board.pause()
        if missing:
            log.warning("ranks %s have not arrived after %.0f s; starting, they may still join", missing, MEET_S)

    def prepared(self, local_rank: int, node: int) -> None:
        """Rank 0 of a node says that the data is prepared; the node's other ranks wait for it."""
        if self._board is None:
            return
        if local_rank == 0:
            self._board.offer(f"prepared/{node}", "yes")
        elif self._board.wait_for(f"prepared/{node}", PREPARE_S) is None and not self._give_up():
            raise ConfigError(f"rank 0 of node {node} has not prepared the data within {PREPARE_S:.0f} s")

    def agree(self, key: str, value: str) -> str:
        """The launch group's value of `key`: rank 0's."""
        if self._board is None:
            return value
        if self._place.rank == 0:
            return self._board.offer(key, value)
        return self._board.wait_for(key, MEET_S) or value

    def adopt(self, key: str, value: str | None) -> str | None:
        """Rank 0 offers `value`; the others wait for it, for as long as rank 0 trains."""
        if self._board is None:
            return value
        if value is not None:
            return self._board.offer(key, value)
        return self._board.wait_for(key, ADOPT_S)

    def optimizer_state(self) -> dict[str, Tensor]:
        """The server's optimizer state by name, for a checkpoint."""
        return ask.fetch_state(self._require())

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Give the server a checkpoint's optimizer state; when the run has begun already, its own stays."""
        if not state:
            return
        try:
            ask.load_state(self._require(), state)
        except RefusedError as error:
            log.warning("the checkpoint's outer optimizer state was not taken, the run's own stays: %s", error.detail)

    def leave(self) -> None:
        """The training is over: take leave of the run. The board stays for what the ranks still have to say."""
        if self.engine is not None and not self.report:
            try:
                self.report = ask.status(self.engine)
            except AsyncWANError as error:
                log.debug("no report: %s", error)
        self._detach()
        if self.engine is not None:
            self.engine.close()

    def close(self, failed: bool, running: Callable[[int], bool]) -> None:
        """End this process's part; `running(rank)` says whether another process of the launch still runs.

        Rank 0 of an embedded run that went well waits here until the others of its launch are through.
        """
        try:
            if failed:
                self._detach()
            else:
                self.leave()
            if self._server is not None and not failed:
                self._wait_for_others(running)
            elif not failed:
                self.done()
        except AsyncWANError as error:
            log.warning("while leaving the run: %s", error)
        finally:
            self._end(failed)

    def _end(self, failed: bool) -> None:
        steps: list[Callable[[], object]] = [self._detach]
        if self.engine is not None:
            engine = self.engine
            steps.append(lambda: engine.close("failed" if failed else "done"))
        if self._board is not None:
            steps.append(self._board.close)
        if self._server is not None:
            steps.append(self._server.quit)
        for step in steps:
            try:
                step()
            except AsyncWANError as error:
                log.warning("while leaving the run: %s", error)

    def _detach(self) -> None:
        if self._attachment is not None:
            self._attachment.detach()
        if self.shares is not None:
            self.shares.restore()

    def done(self) -> None:
        """This rank needs rank 0 and its server no more."""
        if self._board is not None and self._place.rank != 0:
            self._board.offer(f"done/{self._place.rank}", "yes")

    def _wait_for_others(self, running: Callable[[int], bool]) -> None:
        """Rank 0: until every other rank is done, has ended, or has been away for so long that it must have died."""
        board = self._board
        if board is None:
            return
        waiting = set(range(1, self._place.size))
        log.info("training is over on rank 0; waiting for %d other ranks", len(waiting))
        while waiting and not self._give_up():
            self.report = board.status()
            away = {w["rank"] for w in self.report["workers"].values() if self._is_away(w)}
            waiting -= {r for r in waiting if r in away or not running(r) or board.read(f"done/{r}") is not None}
            if waiting:
                board.pause()
        self.report = board.status()

    def _is_away(self, worker: Mapping[str, Any]) -> bool:
        gone = worker["group"] == self._place.group and worker["state"] == "gone"
        return bool(gone and worker["silent_s"] > AWAY_S)

    def _require(self) -> Engine:
        assert self.engine is not None
        return self.engine
