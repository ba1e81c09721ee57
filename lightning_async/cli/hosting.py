"""A server with all its parts, put together from plain values: what `serve` and `serve --embedded` have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from lightning_async.cli.owner import private_of
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.persistence import newest
from lightning_async.server import Coordinator, Keeper, Service
from lightning_async.server.private import Private
from lightning_async.telemetry import JsonLines, Sink
from lightning_async.transport import listen

log = logging.getLogger(__name__)


class Hosted:
    """A listening server. `with hosted: hosted.serve(...)`; the port is free afterwards."""

    def __init__(self, service: Service) -> None:
        self.service = service

    @property
    def live(self) -> int:
        """Workers that are there now."""
        return len(self.service.coordinator.run.members.workers())

    @property
    def over(self) -> bool:
        """Whether the run has ended by itself and nobody is there any more."""
        return bool(self.service.coordinator.run.ended) and not self.live

    def serve(self, go_on: Callable[[], str], hurry: Callable[[], bool]) -> None:
        """As `Service.serve`."""
        self.service.serve(go_on, hurry)

    def __enter__(self) -> Hosted:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.service.close()


def host(
    config: RunConfig,
    run: str,
    address: str,
    *,
    state_dir: str | None = None,
    events: str | None = None,
    public: bool = False,
    validation: str | None = None,
) -> Hosted:
    """A server of `config` that listens at `address`. Raises ConfigError for whatever cannot be used."""
    folder = Path(state_dir).expanduser() if state_dir else None
    private = private_of(folder, validation)
    coordinator = Coordinator(config, run, private) if folder is None else _resumed(config, run, folder, private)
    sinks: list[Sink] = [JsonLines(_file(events))] if events else []
    options = {"public": public} if address.startswith("tcp://") else {}
    keeper = Keeper(folder) if folder is not None else None
    return Hosted(Service(coordinator, listen(address, **options), sinks, keeper=keeper))


def _resumed(config: RunConfig, run: str, folder: Path, private: Private) -> Coordinator:
    """The run whose newest snapshot lies in `folder`, or a new one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        snapshot = newest(folder)
    except OSError as error:
        raise ConfigError(f"cannot keep a run in {folder}: {error.strerror}") from error
    if snapshot is None:
        return Coordinator(config, run, private)
    coordinator = Coordinator.restored(config, snapshot.record, snapshot.tensors, private)
    log.info("going on with run %r at version %d, from %s", coordinator.run.name, coordinator.run.version, folder)
    return coordinator


def _file(text: str) -> Path:
    path = Path(text).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise ConfigError(f"cannot write events to {path}: {error.strerror}") from error
    return path
