"""The configuration of a run: what the server decides and every worker takes from it.

Members of a family stand here as spec strings (`spec.parse` makes objects of them at the edge), so that a
configuration can be written in YAML, sent in the handshake, stored beside a snapshot, and compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from lightning_async.arguments import is_whole
from lightning_async.errors import ConfigError

Submit = Literal["update", "gradient"]
MODES: dict[str, dict[str, tuple[Any, ...]]] = {  # mode -> what it sets: the value, and other ways to write it
    "async": {},
    "sync": {"staleness": ("fixed(bound=0)", "fixed(0)", "0", 0), "quorum": ("all",)},
}
SPECS = ("compression", "download_compression", "aggregation", "outer", "staleness", "weight", "scheduler", "predictor")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. The server's copy is authoritative; a worker that was given other values is refused.

    Args:
        submit: what a worker sends. "update": base minus local parameters after a round of `local_steps` of its own
            optimizer. "gradient": the gradient of every optimizer step; the server's copy of that optimizer steps.
        local_steps: optimizer steps in a round (H). "auto" fits each worker's rounds to its speed and link, see
            scheduling/rounds.py; "auto(steps=16, most=128, staleness=1.5)" is the same. Gradient mode needs 1.
        fragments: pieces of the model that are sent and published by turns, one with each update, so that a link's
            busiest moment is that many times smaller. 1: the whole model each time. For submit="update".
        compression: codec of what workers send, e.g. "none", "fp16", "topk", "auto". A codec that leaves numbers out
            gets error feedback around it: "topk(density=0.02)" means "error_feedback(topk(density=0.02))". None: "none"
            while all workers are on the server's machine, else "int8".
        download_compression: codec of the parameter deltas that the server sends, without error feedback, which the
            deltas have by themselves; None: "none" where uploads are exact, else "either()".
        aggregation: how updates become one, e.g. "mean", "trimmed_mean(f=2)".
        outer: what the server does with the aggregated update, e.g. "sgd(lr=1.0)", "nesterov(lr=0.7, momentum=0.9)".
        staleness: which updates are too old, e.g. "fixed(bound=50)".
        weight: how an update's weight falls with its staleness; "constant" for none, with which three unequal workers
            learned worse (docs/log.md).
        quorum: distinct workers whose updates make a step; "all" means every live worker. None: 1 for "mean"; for a
            robust rule two thirds of `workers` and one, n - floor((n - 1) / 3), or what the rule needs, if more.
        grace_s: once the quorum is there, how long to wait for more workers, seconds; "auto": while one is expected
            soon enough that nobody notices the wait, see server/grace.py.
        barrier_s: with quorum "all", how long a step waits for a worker, from the begin of its round, seconds. None:
            four times its usual round, at least `patience_s`.
        quarantine_below: a worker whose reputation (0 to 1) falls below this is excluded for a time; needs a
            robust rule. None: nobody is.
        workers: workers expected; sizes each worker's share of an epoch, and how many the run waits for at its start.
        total_steps: end the run when the accepted updates hold this many local optimizer steps; None: never.
        epochs: end the run when so many passes over the shared data are applied, each sample once in each; None: never.
        scheduler: which samples a worker gets that asks: "first_come", "priority", "capability", "gale_shapley", or
            "own(path='module:function')".
        predictor: how the scheduler knows what a worker takes for so many samples: "ewma" or "least_squares".
        seed: of the shared sample order and of every random choice of the server.
        follow: put newer parameters under a running round as soon as they exist, within a quarter of the link; False
            fetches them only when an update is sent.
        beat_s: workers that were silent are sent for after this many seconds.
        patience_s: a worker silent for this long is counted out until it joins again.
    """

    submit: Submit = "update"
    local_steps: int | str = 16
    fragments: int = 1
    compression: str | None = None
    download_compression: str | None = None
    aggregation: str = "mean"
    outer: str = "sgd(lr=1.0)"
    staleness: str = "fixed(bound=50)"
    weight: str = "polynomial(a=0.5)"
    quorum: int | Literal["all"] | None = None
    grace_s: float | Literal["auto"] = 0.0
    barrier_s: float | None = None
    quarantine_below: float | None = None
    workers: int = 1
    total_steps: int | None = None
    epochs: int | None = None
    scheduler: str = "first_come()"
    predictor: str = "ewma(weight=0.2)"
    seed: int = 0
    follow: bool = True
    beat_s: float = 2.0
    patience_s: float = 30.0

    def __post_init__(self) -> None:
        for name in SPECS:
            value = getattr(self, name)
            ruled = value is None and name in ("compression", "download_compression")
            _require(ruled or isinstance(value, str), name, value, 'a spec such as "mean"')
        _require(self.submit in ("update", "gradient"), "submit", self.submit, '"update" or "gradient"')
        counted = isinstance(self.local_steps, str) or is_whole(self.local_steps, 1)
        _require(counted, "local_steps", self.local_steps, 'an integer >= 1, or "auto"')
        _require(is_whole(self.fragments, 1), "fragments", self.fragments, "an integer >= 1")
        asked = self.quorum in ("all", None) or is_whole(self.quorum, 1)
        _require(asked, "quorum", self.quorum, 'an integer >= 1, "all", or None')
        _require(is_whole(self.workers, 1), "workers", self.workers, "an integer >= 1")
        for name in ("total_steps", "epochs"):
            most = getattr(self, name)
            _require(most is None or is_whole(most, 1), name, most, "an integer >= 1, or None")
        _require(is_whole(self.seed, -(2**63)), "seed", self.seed, "an integer")
        _require(isinstance(self.follow, bool), "follow", self.follow, "True or False")
        grace = self.grace_s
        _require(grace == "auto" or 0 <= grace < math.inf, "grace_s", grace, 'seconds >= 0, or "auto"')
        wait = self.barrier_s
        _require(wait is None or 0 < wait < math.inf, "barrier_s", wait, "finite seconds > 0, or None")
        share = self.quarantine_below
        _require(share is None or 0 < share < 1, "quarantine_below", share, "a number between 0 and 1, or None")
        more = f"finite seconds, more than beat_s={self.beat_s}, itself more than 0"
        _require(0 < self.beat_s < self.patience_s < math.inf, "patience_s", self.patience_s, more)
        if self.submit == "gradient" and self.local_steps != 1:
            raise ConfigError(f'submit="gradient" sends every step: got local_steps={self.local_steps!r}, expected 1')
        if self.submit == "gradient" and self.fragments != 1:
            raise ConfigError(
                f'submit="gradient" sends what has a gradient: got fragments={self.fragments}, expected 1'
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values only: what Welcome carries and a snapshot stores."""
        return asdict(self)


def _require(holds: bool, name: str, got: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{name}: got {got!r}, expected {expected}")


def read_config(values: Mapping[str, Any]) -> RunConfig:
    """The configuration in `values` (YAML, JSON, or a peer's Welcome). Raises ConfigError, also for unknown names."""
    known = {field.name for field in fields(RunConfig)} | {"mode"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"unknown configuration {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    values = expanded(values)
    bound = values.get("staleness")
    if isinstance(bound, int) and not isinstance(bound, bool):
        values["staleness"] = f"fixed(bound={bound})"
    try:
        return RunConfig(**values)
    except TypeError as error:
        raise ConfigError(f"configuration of the wrong type: {error}") from error


def expanded(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `mode`, if there is one, replaced by what it stands for. Raises ConfigError."""
    rest = {name: value for name, value in values.items() if name != "mode"}
    mode = values.get("mode")
    if mode is not None and mode not in MODES:
        raise ConfigError(f"mode: got {mode!r}, expected {' or '.join(map(repr, MODES))}")
    for name, (value, *others) in MODES.get(mode or "async", {}).items():
        got = rest.get(name)
        if got is not None and got not in (value, *others):
            raise ConfigError(f"mode={mode!r} means {name}={value!r}; got {name}={got!r}. Leave one of them out")
        rest[name] = value
    return rest


def contradictions(run: RunConfig, claims: Mapping[str, str]) -> list[str]:
    """Where a worker's own arguments (name -> repr) differ from the run's: one sentence each, with both values."""
    values = run.as_dict()
    return [
        f"{name}: this worker was given {claimed}, the run has {values[name]!r}"
        for name, claimed in sorted(claims.items())
        if name in values and not agree(values[name], claimed)
    ]


def agree(value: Any, claimed: str) -> bool:
    """Whether `claimed`, the repr of a worker's own argument, is this value: 30 is 30.0."""
    if repr(value) == claimed or isinstance(value, bool | str) or value is None:
        return repr(value) == claimed
    try:
        return bool(float(claimed) == value)
    except ValueError:
        return False
