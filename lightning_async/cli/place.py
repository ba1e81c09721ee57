"""Where a run is served, who may come in, and what is kept of it: the options of `serve` that are not the run's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lightning_async.errors import ConfigError
from lightning_async.keeping import SNAPSHOT_EVERY_S, StateDir


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run is served and what is kept of it.

    Args:
        address: where workers dial. Port 0 takes a free one, see the line that is printed. Several have commas between
            them: tcp://127.0.0.1:5555,http://127.0.0.1:8080 also serves networks that let only HTTP pass.
        http_token: file with the text that callers over http and https must have, in their $LIGHTNING_ASYNC_HTTP_TOKEN.
        http_certificate: PEM file with the chain and key for https.
        http_clients: PEM file; callers over https must have a certificate that it has signed.
        keys: folder of the server's keys (`lightning-async keys server`): everything is encrypted, and only keys of
            its list come in. Beyond this machine they are needed, and ~/.config/lightning_async/server is looked for.
        public: listen beyond this machine without keys: whoever reaches the port may join and read, and nothing is
            encrypted. Only inside a network that you trust.
        state_dir: folder in which the run survives: a journal of everything that was acknowledged, and snapshots. A
            server that is started on one goes on where the last one was, however that ended (docs/durability.md).
        keep_journal: forget nothing that is in the journal, for `lightning-async replay`; else what a snapshot holds.
        snapshot_every_s: seconds between two snapshots while anything changes.
        snapshot_every_versions: versions between two snapshots, if that comes first; 0: only time counts.
        events: file that gets one JSON object per event, appended.
        metrics: file with the run's metrics in Prometheus' text form, replaced every few seconds.
        validation: "module:function", also from the current folder: gives an update that you trust, for zeno
            (docs/aggregation.md).
        run: name of the run, for logs and `status`.
    """

    address: str = "tcp://127.0.0.1:5555"
    http_token: str | None = None
    http_certificate: str | None = None
    http_clients: str | None = None
    keys: str | None = None
    public: bool = False
    state_dir: str | None = None
    keep_journal: bool = False
    snapshot_every_s: float = SNAPSHOT_EVERY_S
    snapshot_every_versions: int = 0
    events: str | None = None
    metrics: str | None = None
    validation: str | None = None
    run: str = "run"

    @property
    def kept(self) -> StateDir | None:
        """What is kept of the run, and where; None for a run that does not survive. Raises ConfigError."""
        if not self.state_dir:
            return None
        return StateDir(self.state_dir, self.keep_journal, self.snapshot_every_s, self.snapshot_every_versions)


def read_place(values: Mapping[str, Any]) -> Place:
    """A Place of these fields. Raises ConfigError for a value of another type."""
    place = Place(**values)
    for field in fields(Place):
        value = getattr(place, field.name)
        if isinstance(field.default, float) and type(value) is int:
            continue
        if not isinstance(value, type(field.default)) and not (field.default is None and isinstance(value, str)):
            raise ConfigError(f"{field.name}: got {value!r}, expected a value like {field.default!r}")
    return place
