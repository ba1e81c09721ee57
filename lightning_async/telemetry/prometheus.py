"""Events as Prometheus metrics, in a text file that is replaced now and then.

Point node_exporter's textfile collector at it, or serve the file by any web server: no port is opened and nothing is
installed for it. The format is the text exposition format 0.0.4. What a person may have to act on (too few workers,
a quarantine, the end) is written at once, the rest at most every EVERY_S seconds of the server's clock.
"""

from __future__ import annotations

import os
from pathlib import Path

from lightning_async.telemetry import events
from lightning_async.telemetry.events import Event

EVERY_S = 5.0
MOST_SERIES = 10_000  # of labels that workers choose, such as their names
AT_ONCE = (events.Initialised, events.Waiting, events.Enough, events.Quarantined, events.Released, events.Ended)
HELP = {
    "version": ("gauge", "version of the published parameters"),
    "steps_total": ("counter", "local optimizer steps in the accepted updates"),
    "members": ("gauge", "workers and observers that are in the run"),
    "joined_total": ("counter", "times that a worker came in"),
    "accepted_total": ("counter", "updates accepted"),
    "refused_total": ("counter", "requests and updates refused, by reason"),
    "dropped_total": ("counter", "accepted updates that a filter did not let make a step"),
    "copied_total": ("counter", "updates that were copies of another worker's"),
    "staleness_sum": ("counter", "sum of the staleness of accepted updates, in versions"),
    "sent_bytes_total": ("counter", "bytes that left the worker's sockets since its process began"),
    "received_bytes_total": ("counter", "bytes that reached them"),
    "loss": ("gauge", "training loss of the worker's last accepted round"),
    "score": ("gauge", "reputation, 0 to 1"),
    "quarantined": ("gauge", "1 while the worker's updates are refused"),
    "waiting_for_workers": ("gauge", "1 while too few workers are there for a step"),
    "workers_needed": ("gauge", "workers that a step needs, while too few are there; else 0"),
    "ended": ("gauge", "1 once the run is over"),
}


class Prometheus:
    """A sink that keeps `path` up to date. `text()` is what stands in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[tuple[str, str], float] = {}
        self._there: set[str] = set()
        self._written_s = float("-inf")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def write(self, event: Event) -> None:
        """Count it. Raises OSError where the file cannot be written."""
        self._take(event)
        if isinstance(event, AT_ONCE) or event.time_s - self._written_s >= EVERY_S:
            self._written_s = event.time_s
            self._write()

    def close(self) -> None:
        """Write what has come since."""
        self._write()

    def text(self) -> str:
        """The metrics in Prometheus' text form."""
        lines = []
        for name, (kind, told) in HELP.items():
            found = [(labels, value) for (own, labels), value in self._values.items() if own == name]
            if found:
                lines += [f"# HELP lightning_async_{name} {told}", f"# TYPE lightning_async_{name} {kind}"]
                lines += [f"lightning_async_{name}{labels} {value:.10g}" for labels, value in found]
        return "\n".join([*lines, ""])

    def _write(self) -> None:
        draft = self._path.with_name(self._path.name + ".new")
        draft.write_text(self.text(), encoding="utf-8")
        os.replace(draft, self._path)

    def _set(self, name: str, value: float, **labels: str) -> None:
        key = (name, _labels(labels))
        if key in self._values or len(self._values) < MOST_SERIES:
            self._values[key] = value

    def _add(self, name: str, value: float = 1.0, **labels: str) -> None:
        self._set(name, self._values.get((name, _labels(labels)), 0.0) + value, **labels)

    def _take(self, event: Event) -> None:
        match event:
            case events.Joined(worker=worker):
                self._there.add(worker)
                self._add("joined_total")
                self._set("members", len(self._there))
            case events.Left(worker=worker):
                self._there.discard(worker)
                self._set("members", len(self._there))
            case events.Accepted():
                self._accept(event)
            case events.Traffic(worker=worker):
                self._set("sent_bytes_total", event.sent_bytes, worker=worker)
                self._set("received_bytes_total", event.received_bytes, worker=worker)
            case events.Refused(reason=reason):
                self._add("refused_total", reason=reason)
            case events.Dropped(worker=worker):
                self._add("dropped_total", worker=worker)
            case events.Copied(worker=worker):
                self._add("copied_total", worker=worker)
            case events.Judged(workers=workers, score=scores):
                for worker, score in zip(workers, scores, strict=True):
                    self._set("score", score, worker=worker)
            case events.Quarantined(worker=worker) | events.Released(worker=worker):
                self._set("quarantined", float(isinstance(event, events.Quarantined)), worker=worker)
            case _:
                self._take_run(event)

    def _take_run(self, event: Event) -> None:
        match event:
            case events.Initialised():
                self._set("version", 0)
                self._set("waiting_for_workers", self._values.get(("waiting_for_workers", ""), 0))
            case events.Stepped(version=version, steps_total=steps):
                self._set("version", version)
                self._set("steps_total", steps)
            case events.Waiting(need=need):
                self._set("waiting_for_workers", 1)
                self._set("workers_needed", need)
            case events.Enough():
                self._set("waiting_for_workers", 0)
                self._set("workers_needed", 0)
            case events.Ended():
                self._set("ended", 1)

    def _accept(self, event: events.Accepted) -> None:
        self._add("accepted_total", worker=event.worker)
        self._add("staleness_sum", event.staleness)
        if event.loss is not None:
            self._set("loss", event.loss, worker=event.worker)


def _labels(labels: dict[str, str]) -> str:
    pairs = [f'{key}="{_escaped(value)}"' for key, value in labels.items()]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escaped(text: str) -> str:
    """A label's value, as the format wants it."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
