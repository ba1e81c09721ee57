"""`lightning-async serve`: one run's parameter server, from a YAML file and flags, until it is over or stopped."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from lightning_async.cli import supervise
from lightning_async.cli.options import add_fields, given
from lightning_async.cli.place import Place, read_place
from lightning_async.config import MODES, RunConfig, read_config
from lightning_async.errors import ConfigError

if TYPE_CHECKING:
    from lightning_async.cli.hosting import Hosted

LINE_S = 5.0  # between two lines of the log that say how the run is going
LINGER_S = 5.0  # a run that is over is served for this long after its last worker has left
log = logging.getLogger(__name__)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML with any of the options below, written with underscores. "
        "What is given on the command line wins."
    )  # fmt: skip
    parser.add_argument(
        "--embedded", action="store_true", help="for programs: take orders on stdin, see cli/embedded.py"
    )
    add_supervision(parser)
    parser.add_argument(
        "--mode", choices=list(MODES), default=argparse.SUPPRESS, help='"sync" is short for --staleness 0 --quorum all.'
    )
    add_fields(parser, Place, "place")
    add_fields(parser, RunConfig, "run")


def add_supervision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--supervise", action="store_true", help="start the server again when it has died, three times in five minutes "
        "at most; needs a state_dir and a port"
    )  # fmt: skip
    parser.add_argument("--supervised-by", type=int, metavar="PID", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    if args.embedded:
        from lightning_async.cli import embedded

        return embedded.run()
    mode = {"mode": args.mode} if hasattr(args, "mode") else {}
    flags = {**mode, **given(args, Place), **given(args, RunConfig)}
    return served(*configured(read_file(args.config), flags), args)


def served(config: RunConfig, place: Place, args: argparse.Namespace) -> int:
    """Serve, in this process or in one that it looks after; the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    if args.supervise and args.supervised_by is None:
        supervise.check(place.address, place.state_dir)
        return supervise.Watch(supervise.command_of(args.words)).run()
    return attended(config, place, args.supervised_by)


def attended(config: RunConfig, place: Place, supervisor: int | None) -> int:
    """Serve until the run is over, a signal comes, or the process `supervisor` is not our parent any more; the exit
    code."""
    attendant = Attendant(supervisor)
    signal.signal(signal.SIGINT, attendant.signalled)
    signal.signal(signal.SIGTERM, attendant.signalled)
    from lightning_async.cli.hosting import host  # imports torch; what is wrong above is said before

    with host(config, place) as hosted:
        print(join_line(hosted.service.address), flush=True)
        hosted.serve(lambda: attendant.why_stop(hosted, time.monotonic()), lambda: False)
        log.info("%r", hosted.service.coordinator)
    return 128 + attendant.signal if attendant.signal else 0


def read_file(path: Path | None) -> dict[str, Any]:
    """The mapping in a YAML file; empty without one."""
    if path is None:
        return {}
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values or {}, dict) or not all(isinstance(key, str) for key in values or {}):
        raise ConfigError(f"{path} must be a mapping of options, such as `local_steps: 16`; got {str(values)[:80]!r}")
    return dict(values or {})


def configured(file: Mapping[str, Any], flags: Mapping[str, Any]) -> tuple[RunConfig, Place]:
    """What file and command line say together, the command line above the file. Raises ConfigError."""
    values = {**file, **flags}
    own = {field.name for field in fields(Place)}
    config = read_config({key: value for key, value in values.items() if key not in own})
    return config, read_place({key: value for key, value in values.items() if key in own})


def join_line(address: str) -> str:
    """What a person copies to join: the line of a script, or the environment of one that names no server."""
    return f'join: AsyncWANStrategy("{address}")  # or: LIGHTNING_ASYNC_SERVER={address} python your_script.py'


class Attendant:
    """Watches a server that people run: signals, the line in the log, and whether the run is over."""

    def __init__(self, supervisor: int | None = None) -> None:
        self.signal = 0
        self._supervisor = supervisor
        self._line = ""
        self._next_line = 0.0
        self._over_since: float | None = None

    def signalled(self, number: int, frame: FrameType | None) -> None:
        """SIGINT and SIGTERM: the first asks for an orderly end, the second ends at once."""
        if self.signal:
            os._exit(128 + number)
        self.signal = number

    def why_stop(self, hosted: Hosted, now: float) -> str:
        """The reason to stop, empty for none; logs the run's line when it has changed."""
        if self.signal:
            log.info("%s: telling the workers; once more to end at once", signal.Signals(self.signal).name)
            return f"stopped by {signal.Signals(self.signal).name}"
        if self._supervisor is not None and os.getppid() != self._supervisor:
            return "its supervisor has died"
        if now >= self._next_line:
            self._next_line = now + LINE_S
            self._say(repr(hosted.service.coordinator))
        self._over_since = (now if self._over_since is None else self._over_since) if hosted.over else None
        over = self._over_since is not None and now - self._over_since > LINGER_S
        return "the run is over" if over else ""

    def _say(self, line: str) -> None:
        if line != self._line:
            log.info("%s", line)
        self._line = line
