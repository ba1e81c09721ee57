"""How long a worker waits for a server that says nothing. All of it follows from one knob, the run's `patience_s`, and
from what was measured of the line; before the run is known, from `LIGHTNING_ASYNC_PATIENCE_S`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError

JOIN_PATIENCE_S = 60.0  # one that never answered; LIGHTNING_ASYNC_PATIENCE_S overrides it
REJOIN_FACTOR = 10.0  # times the run's patience, for one that did; training goes on until the end of the next round
SILENCE_SHARE = 0.5  # of the run's patience, before the bytes under way are added: then the line is dialled anew
ROUND_TRIPS, SLOWDOWN = 4.0, 3.0  # a line that is so much slower than it was is not dead
SLOWEST_BYTES_S = 60_000.0  # assumed until a transfer was measured: half of 1 Mbit/s
MOST_DOUBLINGS = 6  # of what a line may be silent, as long as dialling anew brings no word either
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


def run_patience_s(config: Mapping[str, Any]) -> float:
    """The knob, as a Welcome's configuration says it."""
    said = config.get("patience_s")
    return float(said) if isinstance(said, int | float) and said > 0 else RunConfig.patience_s


def silence_s(
    patience_s: float, under_way_bytes: float, bytes_per_s: float | None, rtt_s: float | None, dialled: int
) -> float:
    """How long nothing at all may come over a good line with so many bytes under way, seconds; it was `dialled` anew
    so often since a request was answered, so it may be slower than is believed, and never be measured for dialling."""
    moving_s = under_way_bytes / (bytes_per_s or SLOWEST_BYTES_S)
    usual_s = SILENCE_SHARE * patience_s + SLOWDOWN * moving_s + ROUND_TRIPS * (rtt_s or 0.0)
    return usual_s * 2.0 ** min(dialled, MOST_DOUBLINGS)
