"""What the owner may change while a run goes on, and what becomes of that when its server is started again.

Changed may be what the server alone decides by, from one event to the next. What a worker takes from its Welcome and
never asks for again stays as it is: nobody would tell those that are there. A change is checked whole before anything
of it is done, and is an event like any other: in the journal, replayed bit for bit.

A change outlives the server: one that is started again with what it was given before goes on with what the owner has
changed since. Where it is given something else than before, that is the owner's newest word, and it counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning_async.config import RunConfig, read_config
from lightning_async.errors import ConfigError
from lightning_async.server import exchange, standing
from lightning_async.server.rules import canonical, rules_of
from lightning_async.server.run import Run
from lightning_async.telemetry import events

AT_JOIN = "workers take it when they join and do not ask again"
WHAT = "it is what the run is"
CHANGEABLE: dict[str, str] = {  # and from when on it holds
    "quorum": 'for the next step; not from or to "all", which workers train by',
    "grace_s": "for the next step",
    "barrier_s": "for the next step",
    "staleness": "for the next update; a bound of 0 stays 0, and another one never becomes 0, since workers wait by it",
    "weight": "for the next step, also for updates that wait",
    "quarantine_below": "for the next step; without it everybody is let out",
    "total_steps": "at once; a number that is reached already is no change but a `stop`",
    "scheduler": "for the next lease; not to own(...), which imports code",
    "predictor": "for the next lease; what it learns by begins anew",
}
FIXED: dict[str, str] = {  # and why
    "submit": WHAT,
    "local_steps": AT_JOIN,
    "fragments": AT_JOIN,
    "compression": AT_JOIN,
    "download_compression": "workers hold what was published by it",
    "aggregation": "its state and its quorum belong to it",
    "outer": "its state belongs to it",
    "workers": "the outer optimizer is made for so many, and workers take it when they join",
    "epochs": "workers have been told which pass of the data is the last",
    "seed": "the order of the data follows from it",
    "follow": AT_JOIN,
    "beat_s": AT_JOIN,
    "patience_s": AT_JOIN,
}


def change(run: Run, wanted: Mapping[str, Any]) -> None:
    """Go on with these values of the configuration. Raises ConfigError, and nothing has changed, for one that cannot be
    changed, or not to that."""
    config = _checked(run, wanted)
    before, rules = run.config, rules_of(config, run.rules.private)
    run.config = config
    run.rules = replace(
        run.rules, policy=rules.policy, weight=rules.weight, scheduler=rules.scheduler, predictor=rules.predictor
    )
    if run.stepper is not None:
        run.stepper.go_on(run.config, run.rules)
    for name in CHANGEABLE:
        _note(run, name, getattr(before, name), getattr(config, name))
    if config.quarantine_below is None:
        standing.release_all(run, "nobody is put into quarantine any more")
    exchange.step_when_ready(run)


def _note(run: Run, name: str, before: Any, after: Any) -> None:
    if before == after:
        return
    given = run.changed.pop(name, {"given": before})["given"]
    if given != after:
        run.changed[name] = {"given": given, "now": after}
    run.emit(events.Changed(time_s=run.now, name=name, before=repr(before), after=repr(after)))


def _checked(run: Run, wanted: Mapping[str, Any]) -> RunConfig:
    """The configuration after the change. Raises ConfigError."""
    if not wanted:
        raise ConfigError(f"nothing to change; give name=value, of {', '.join(CHANGEABLE)}")
    for name, value in wanted.items():
        if name not in CHANGEABLE:
            why = FIXED.get(name, "there is no such thing in a configuration")
            raise ConfigError(f"{name[:80]}: cannot be changed while a run goes on: {why}. {_can()}")
        if isinstance(value, bool):
            raise ConfigError(f"{name}: got {value!r}, expected a number, a text or None")
    if run.ended:
        raise ConfigError(f"the run has ended: {run.ended}")
    config = canonical(read_config({**run.config.as_dict(), **wanted}))
    _check(run, config)
    return config


def _check(run: Run, config: RunConfig) -> None:
    """Raises ConfigError for values that are right for a new run and not for one that goes on."""
    if (config.quorum == "all") != (run.config.quorum == "all"):
        raise _kept("quorum", run.config.quorum, config.quorum)
    bounds = rules_of(config).policy.bound, run.rules.policy.bound
    if (bounds[0] == 0) != (bounds[1] == 0):
        raise _kept("staleness", run.config.staleness, config.staleness)
    if config.scheduler.startswith("own(") and config.scheduler != run.config.scheduler:
        raise _kept("scheduler", run.config.scheduler, config.scheduler)
    steps = config.total_steps
    if steps is not None and steps != run.config.total_steps and steps <= run.steps_total:
        raise ConfigError(
            f"total_steps: got {steps}, and {run.steps_total} are in; `lightning-async stop` ends the run"
        )


def _kept(name: str, has: object, got: object) -> ConfigError:
    return ConfigError(f"{name}: cannot be changed from {has!r} to {got!r}. What holds: {CHANGEABLE[name]}")


def _can() -> str:
    return f"What can be: {', '.join(CHANGEABLE)}"


def carried(config: RunConfig, changed: Mapping[str, Mapping[str, Any]]) -> tuple[RunConfig, dict[str, dict[str, Any]]]:
    """(`config`, as a server was given it, with the owner's changes; those of the changes that still hold)."""
    config = canonical(config)
    kept = {
        name: dict(row) for name, row in changed.items() if name in CHANGEABLE and getattr(config, name) == row["given"]
    }
    return replace(config, **{name: row["now"] for name, row in kept.items()}), kept
