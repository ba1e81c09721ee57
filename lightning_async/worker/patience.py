"""How long a server that does not answer is dialled."""

from __future__ import annotations

import os

from lightning_async.errors import ConfigError

JOIN_PATIENCE_S = 60.0  # one that never answered; LIGHTNING_ASYNC_PATIENCE_S overrides it
REJOIN_PATIENCE_S = 300.0  # one that did; training goes on locally until the end of the next round
PATIENCE = "LIGHTNING_ASYNC_PATIENCE_S"


def join_patience_s() -> float:
    """How long a server that never answered is dialled, seconds. Raises ConfigError."""
    text = os.environ.get(PATIENCE, "")
    try:
        seconds = float(text) if text else JOIN_PATIENCE_S
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{PATIENCE}: got {text!r}, expected seconds above 0")
    return seconds
