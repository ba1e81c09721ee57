"""A server as the child of whoever looks after it: apart from the terminal, and started again when it has died, after a
pause that doubles, and not for ever.

Two do this: strategy/supervisor.py for the embedded server, cli/supervise.py for one of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from typing import Any

BACKOFF_S = 0.5  # before the first restart; then twice as long each time
MOST_RESTARTS, WINDOW_S = 3, 300.0


def own_group() -> dict[str, Any]:
    """Options of Popen for a server: a terminal's Ctrl+C does not reach it, not even before it can ignore that."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


class Restarts:
    """The restarts of one server."""

    def __init__(self) -> None:
        self._begun: deque[float] = deque(maxlen=MOST_RESTARTS)

    def pause_s(self, now: float) -> float | None:
        """Seconds to wait before the next restart; None when it has been restarted often enough."""
        recent = sum(1 for at in self._begun if now - at < WINDOW_S)
        return None if recent >= MOST_RESTARTS else BACKOFF_S * 2.0**recent

    def note(self, now: float) -> None:
        """It was started again."""
        self._begun.append(now)

    def too_often(self, server: str, code: int) -> str:
        """What to say when there is no next one, of `server`, which has ended with `code`."""
        return (
            f"{server} has ended with code {code}, as {MOST_RESTARTS} before it in {WINDOW_S:.0f} s. Mend what it says "
            "and start again: its state_dir has what was acknowledged"
        )
