"""What the programs of these tests say on stdout, where tests/e2e/processes.py listens, and the gate they wait at."""

from __future__ import annotations

import json
import os
import time

from torch import nn


def say(event: str, rank: int = 0, **values: object) -> None:
    """One line that begins with an @."""
    os.write(1, f"\n@{json.dumps({'event': event, 'rank': rank, **values})}\n".encode())  # whole, and a line of its own


def flat(module: nn.Module) -> list[float]:
    """All parameters, one after the other."""
    return [float(v) for p in module.parameters() for v in p.detach().reshape(-1)]


def wait_at_the_gate(rank: int = 0) -> None:
    """Say "gate", and wait until the file `go` is there."""
    say("gate", rank)
    while not os.path.exists("go"):
        time.sleep(0.02)
