"""How a worker that stands for itself leaves: with what the server made of its last updates.

When the last worker of a run goes, the server makes a version of what still waits for a quorum. So whoever has such
updates looks once more after the goodbye; as an observer, which it becomes before, so that it is never a stranger.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from lightning_async.errors import AsyncWANError
from lightning_async.transport import connect
from lightning_async.transport.base import Connection
from lightning_async.worker.board import Board
from lightning_async.worker.engine import Engine

ANSWER_S = 10.0  # for the answer to the goodbye, on which the last version depends
log = logging.getLogger(__name__)


def leave(engine: Engine, board: Board) -> None:
    """Take leave of the run, and end with the newest published parameters in the model: after `align`."""
    engine.close(goodbye_s=ANSWER_S)
    engine.replica.load(board.parameters(engine.shared.layout))


def leave_alone(engine: Engine, connect: Callable[..., Connection] = connect) -> None:
    """Send what is not sent, take leave, and end with the newest published parameters in the model; `connect` dials.

    Raises what `Engine.align` raises. When the server goes away in between, the model lacks what still waited there.
    """
    engine.align()
    if not engine.replica.pending:
        engine.close()
        return
    board = Board(engine.address, "leaving", connect=connect, key=engine.identity.key)
    try:
        leave(engine, board)
    except AsyncWANError as error:
        log.warning("the last updates of this worker are not in its model: %s", error)
    finally:
        board.close()
