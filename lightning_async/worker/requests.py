"""The small questions that a worker asks its run beside pushing and pulling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_async.errors import ProtocolError
from lightning_async.wire.messages import Fetch, Load, Moments, Report, Share, Shared, Status
from lightning_async.wire.tensors import pack_tensors, unpack_tensors
from lightning_async.worker.engine import Engine


def share(engine: Engine, key: str, value: str | None = None) -> str | None:
    """Offer `value` for `key` (the first offer wins) and learn what it has; None while nobody has offered."""
    reply, _ = engine.ask(Share(key=key, value=value))
    if not isinstance(reply, Shared):
        raise ProtocolError(f"Share was answered by {type(reply).__name__}")
    return reply.value


def status(engine: Engine) -> dict[str, Any]:
    """The run's state, as `lightning-async status` shows it."""
    reply, _ = engine.ask(Status())
    if not isinstance(reply, Report):
        raise ProtocolError(f"Status was answered by {type(reply).__name__}")
    return reply.state


def fetch_state(engine: Engine) -> dict[str, Tensor]:
    """The state of the server's optimizer by name: `outer/...`, or `<optimizer>/<parameter>/<key>` in gradient mode."""
    reply, payload = engine.ask(Fetch())
    if not isinstance(reply, Moments):
        raise ProtocolError(f"Fetch was answered by {type(reply).__name__}")
    return unpack_tensors(reply.keys, reply.shapes, reply.dtypes, payload)


def load_state(engine: Engine, state: Mapping[str, Tensor]) -> None:
    """Give the server its optimizer's state back.

    Raises RefusedError unless this worker began the run and nobody has stepped.
    """
    fields, payload = pack_tensors(state)
    engine.ask(Load(**fields), payload)
