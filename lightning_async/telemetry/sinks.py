"""Where events go: memory, or a file of JSON lines."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from lightning_async.telemetry.events import Event


class Sink(Protocol):
    """Takes events. One that raises OSError or ValueError (a full disk) is dropped by the service, with an error."""

    def write(self, event: Event) -> None: ...

    def close(self) -> None: ...


class Memory:
    """The newest `keep` events, for tests and for `status`."""

    def __init__(self, keep: int = 1000) -> None:
        self.events: deque[Event] = deque(maxlen=keep)

    def write(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, with the event's name under "event". Line-buffered, appended."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, event: Event) -> None:
        self._file.write(json.dumps({"event": type(event).__name__, **asdict(event)}) + "\n")

    def close(self) -> None:
        self._file.close()
