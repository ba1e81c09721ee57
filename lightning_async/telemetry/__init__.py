"""What happened (events), how much (metrics), and where it is written (sinks)."""

from lightning_async.telemetry.events import Event
from lightning_async.telemetry.metrics import Ewma, Histogram
from lightning_async.telemetry.prometheus import Prometheus
from lightning_async.telemetry.sinks import JsonLines, Memory, Sink

__all__ = ["Event", "Ewma", "Histogram", "JsonLines", "Memory", "Prometheus", "Sink"]
