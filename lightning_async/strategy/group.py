"""What the processes of one launch agree on: when to begin, where to write, which checkpoint was best, when to end.

They talk through a notice board on the run's server (worker/board.py). Rank 0 has started the others, so it is the one
that knows when one of them has died; the others wait for rank 0 alone. A process that stands for itself has no group.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_async.errors import ConfigError
from lightning_async.worker.board import Board

MEET_S = 60.0  # how long a run waits at its start for the workers of its launch group
PREPARE_S = 3600.0  # how long other ranks wait for rank 0 of their node to prepare the data
AWAY_S = 10.0  # after a worker has left: how long its process may take for its last words
ADOPT_S = 24 * 3600.0  # how long a rank that is through waits for rank 0
log = logging.getLogger("lightning_async")
_fits = itertools.count(1)  # of this process; all ranks run the same script, so all count alike


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


def next_name(group: str) -> str:
    """The name of `group` in its next fit: what was said in one fit is not heard in another."""
    return f"{group}.{next(_fits)}"


class Group:
    """This process among those of its launch.

    Args:
        board: of this fit.
        place: rank and size.
        running: rank -> whether its process still runs, as far as this process can know.
        give_up: asked in every wait.
    """

    def __init__(self, board: Board, place: Place, running: Callable[[int], bool], give_up: Callable[[], bool]) -> None:
        self.board, self._place, self._running, self._give_up = board, place, running, give_up

    def meet(self) -> None:
        """Wait until all are here. Who has arrived stays so, even when it is through before a slow one has looked."""
        self.board.offer(f"arrived/{self._place.rank}", "yes")
        missing = self._wait_for_all("arrived", MEET_S)
        if missing:
            text = (
                "ranks %s have not arrived after %.0f s; starting, they may still join. With keys all need the same one"
            )
            log.warning(text, missing, MEET_S)

    def part(self) -> None:
        """Wait until all have sent what they had to send. Rank 0 says when: it does not wait for the dead."""
        if self._place.rank == 0:
            self._wait_for_all("through", ADOPT_S)
        self.board.offer(f"through/{self._place.rank}", "yes")
        if self._place.rank != 0:
            self.board.wait_for("through/0", ADOPT_S)

    def done(self) -> None:
        """This rank needs rank 0 and its server no more."""
        self.board.offer(f"done/{self._place.rank}", "yes")

    def wait_until_done(self) -> None:
        """Rank 0: until no other rank needs it."""
        self._wait_for_all("done", ADOPT_S)

    def prepared(self, local_rank: int, node: int) -> None:
        """Rank 0 of a node says that the data is prepared; the node's other ranks wait for it."""
        if local_rank == 0:
            self.board.offer(f"prepared/{node}", "yes")
        elif self.board.wait_for(f"prepared/{node}", PREPARE_S) is None and not self._give_up():
            raise ConfigError(f"rank 0 of node {node} has not prepared the data within {PREPARE_S:.0f} s")

    def agree(self, key: str, value: str) -> str:
        """Rank 0's value of `key`."""
        if self._place.rank == 0:
            return self.board.offer(key, value)
        return self.board.wait_for(key, MEET_S) or value

    def adopt(self, key: str, value: str | None) -> str | None:
        """Rank 0 offers `value`; the others wait for it, for as long as rank 0 trains."""
        return self.board.wait_for(key, ADOPT_S) if value is None else self.board.offer(key, value)

    def _wait_for_all(self, key: str, timeout_s: float) -> set[int]:
        """Until every other rank has said `key`, or cannot say it any more; the ranks that still could and have not."""
        deadline = time.monotonic() + timeout_s
        missing = set(range(self._place.size)) - {self._place.rank}
        while missing and time.monotonic() < deadline and not self._give_up():
            said = {rank for rank in missing if self.board.read(f"{key}/{rank}") is not None}
            missing -= said | {rank for rank in missing if not self._running(rank)}
            missing -= self._away() if missing else set()
            if missing:
                self.board.pause()
        return missing

    def _away(self) -> set[int]:
        """Ranks whose worker has left, or was counted out, so long ago that its process must be gone too."""
        workers = self.board.status()["workers"].values()
        return {worker["rank"] for worker in workers if self._is_away(worker)}

    def _is_away(self, worker: Mapping[str, Any]) -> bool:
        gone = worker["group"] == self._place.group and worker["state"] == "gone"
        return bool(gone and worker["silent_s"] > AWAY_S)
