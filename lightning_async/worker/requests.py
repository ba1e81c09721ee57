"""The small questions that a worker, or a notice board, asks the run beside pushing and pulling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor

from lightning_async.errors import ProtocolError
from lightning_async.layout import Layout
from lightning_async.transport.base import Frame
from lightning_async.wire.messages import (
    Fetch,
    Load,
    Moments,
    Params,
    Pull,
    Reply,
    Report,
    Request,
    Share,
    Shared,
    Status,
)
from lightning_async.wire.tensors import pack_tensors, unpack_tensors
from lightning_async.worker.downloading import read_snapshot
from lightning_async.worker.replica import Arrival

Answer = TypeVar("Answer", Shared, Report, Params, Moments)


class Asker(Protocol):
    """Who can ask: an engine, a board."""

    def ask(self, message: Request, payload: tuple[Frame, ...] = ()) -> tuple[Reply, tuple[Frame, ...]]:
        """The answer. Raises RefusedError, and NetworkError when the wait was given up."""


def share(asker: Asker, key: str, value: str | None = None) -> str | None:
    """Offer `value` for `key` (the first offer wins) and learn what it has; None while nobody has offered."""
    reply, _ = _asked(asker, Share(key=key, value=value), Shared)
    return reply.value


def status(asker: Asker) -> dict[str, Any]:
    """The run's state, as `lightning-async status` shows it."""
    reply, _ = _asked(asker, Status(), Report)
    return reply.state


def parameters(asker: Asker, layout: Layout) -> Arrival:
    """The newest published parameters, whole."""
    reply, payload = _asked(asker, Pull(), Params)
    return read_snapshot(reply, payload, layout.d, layout.b)


def fetch_state(asker: Asker) -> dict[str, Tensor]:
    """The state of the server's optimizer by name: `outer/...`, or `<optimizer>/<parameter>/<key>` in gradient mode."""
    reply, payload = _asked(asker, Fetch(), Moments)
    return unpack_tensors(reply.keys, reply.shapes, reply.dtypes, payload)


def load_state(asker: Asker, state: Mapping[str, Tensor]) -> None:
    """Give the server its optimizer's state back.

    Raises RefusedError unless this worker began the run and nobody has stepped.
    """
    fields, payload = pack_tensors(state)
    asker.ask(Load(**fields), payload)


def _asked(asker: Asker, request: Request, kind: type[Answer]) -> tuple[Answer, tuple[Frame, ...]]:
    """The answer and its payload. Raises ProtocolError for one that is not of this kind."""
    reply, payload = asker.ask(request)
    if not isinstance(reply, kind):
        raise ProtocolError(f"{type(request).__name__} was answered by {type(reply).__name__}")
    return reply, payload
