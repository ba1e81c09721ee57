"""A server with all its parts, put together from plain values: what `serve` and `serve --embedded` have in common."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from lightning_async.cli.doors import is_far, listening
from lightning_async.cli.owner import private_of
from lightning_async.cli.place import Place
from lightning_async.config import RunConfig
from lightning_async.errors import AsyncWANError, ConfigError
from lightning_async.keeping import StateDir
from lightning_async.persistence import Lock
from lightning_async.server import Coordinator, Keeper, Service
from lightning_async.server.history import stored_config
from lightning_async.server.private import Private
from lightning_async.server.recorder import Recorder
from lightning_async.server.recovery import recorded
from lightning_async.server.rules import settled
from lightning_async.telemetry import JsonLines, Prometheus, Sink

log = logging.getLogger(__name__)


class Hosted:
    """A listening server. `with hosted: hosted.serve(...)`; the port is free afterwards."""

    def __init__(self, service: Service, lock: Lock | None = None) -> None:
        self.service, self._lock = service, lock

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
        try:
            self.service.close()
        finally:
            if self._lock is not None:
                self._lock.close()


def host(config: RunConfig, place: Place) -> Hosted:
    """A server of `config` that listens at `place.address`. Raises CallerError for whatever cannot be used; nothing
    listens then, and no state_dir is taken."""
    with ExitStack() as undo:
        kept = place.kept
        folder = _folder(kept.path) if kept is not None else None
        lock = undo.enter_context(closing(_locked(folder))) if folder is not None else None
        private, config = private_of(folder, place.validation), _settled(config, place, folder)
        sinks: list[Sink] = [JsonLines(_file(place.events))] if place.events else []
        sinks += [Prometheus(_file(place.metrics))] if place.metrics else []
        if kept is None or folder is None:
            coordinator = Coordinator(config, place.run, private, secrets.token_hex(16))
            return Hosted(Service(coordinator, listening(place), sinks))
        recorder = undo.enter_context(closing(_recorded(config, place.run, folder, private, kept.keep_journal)))
        service = Service(
            recorder.coordinator, listening(place), sinks, keeper=_keeper(folder, kept, recorder), recorder=recorder
        )
        undo.pop_all()
        return Hosted(service, lock)


def _settled(config: RunConfig, place: Place, folder: Path | None) -> RunConfig:
    """What nobody has said follows from where workers come from, and in a run that goes on from what it was."""
    if config.compression is None and folder is not None:
        with suppress(AsyncWANError, OSError):  # no run yet, or what is wrong with it is said by whoever opens it
            config = replace(config, compression=stored_config(folder)[0].compression)
    return settled(config, far=is_far(place))


def _folder(state_dir: str) -> Path:
    folder = Path(state_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    return folder


def _locked(folder: Path) -> Lock:
    try:
        return Lock(folder)
    except OSError as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot keep a run in {folder}: {error.strerror or error}. Make room there or make it writable, or give "
        "another state_dir"
    )


def _recorded(config: RunConfig, run: str, folder: Path, private: Private, keeps: bool) -> Recorder:
    """The run whose state lies in `folder`, or a new one."""
    try:
        recorder = recorded(config, run, folder, time.monotonic(), private, secrets.token_hex(16), keeps=keeps)
    except OSError as error:
        raise _unusable(folder, error) from error
    found = recorder.coordinator.run
    if found.version >= 0:
        log.info("going on with run %r at version %d, from %s", found.name, found.version, folder)
    return recorder


def _keeper(folder: Path, kept: StateDir, recorder: Recorder) -> Keeper:
    return Keeper(
        folder,
        kept.snapshot_every_s,
        every_versions=kept.snapshot_every_versions or None,
        commits=recorder.commits,
        prunes=not kept.keep_journal,
    )


def _file(text: str) -> Path:
    path = Path(text).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise ConfigError(f"cannot write to {path}: {error.strerror}") from error
    return path
