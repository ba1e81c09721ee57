"""The rules of a run as objects: every spec of a RunConfig, made once, checked against each other at start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lightning_async.aggregation import Aggregator, aggregator
from lightning_async.codecs import Codec, download_codec, upload_codec
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.outer import Outer, outer
from lightning_async.staleness import Policy, Weight, policy, weight


@dataclass(frozen=True)
class Rules:
    """What the coordinator works with."""

    upload: Codec
    download: Codec
    aggregator: Aggregator
    outer: Outer
    policy: Policy
    weight: Weight


def rules_of(config: RunConfig) -> Rules:
    """The objects that `config` names. Raises ConfigError where one is unknown or they cannot work together."""
    upload = upload_codec(config.compression)
    rules = Rules(
        upload=upload,
        download=download_codec(config.download_compression, upload),
        aggregator=aggregator(config.aggregation),
        outer=outer(config.outer),
        policy=policy(config.staleness),
        weight=weight(config.weight),
    )
    _check_quorum(config, rules.aggregator)
    if config.quarantine_below is not None and not rules.aggregator.robust:
        raise ConfigError(
            f"quarantine_below={config.quarantine_below} with {rules.aggregator.spec}: reputation is measured against "
            "the aggregate, and a hostile worker can make that its own; choose a robust rule, such as trimmed_mean(f=1)"
        )
    return rules


def quorum_of(config: RunConfig, rule: Aggregator) -> int | Literal["all"]:
    """The quorum of the run: the one asked for, or the default.

    For a robust rule that is n - floor((n - 1) / 3) of n expected workers: as many may be silent, and as many of those
    who answer hostile, and honest updates are still the majority of a step.
    """
    if config.quorum is not None:
        return config.quorum
    share = config.workers - (config.workers - 1) // 3 if rule.robust else 1
    return max(share, _least(rule))


def _least(rule: Aggregator) -> int:
    return max(2 if rule.robust else 1, rule.smallest)


def _check_quorum(config: RunConfig, rule: Aggregator) -> None:
    """Refuse what can never make a step. One expected worker says nothing: it is the default, and others may join."""
    quorum, least = config.quorum, _least(rule)
    if isinstance(quorum, int) and quorum < least:
        raise ConfigError(f"quorum={quorum} can never satisfy {rule.spec}; the smallest quorum that does is {least}")
    if not isinstance(quorum, int) and 1 < config.workers < least:
        raise ConfigError(
            f"{config.workers} workers can never satisfy {rule.spec}; the smallest quorum that does is {least}: expect "
            f"{least} workers or more, lower f, or set quorum={least} where others will join"
        )


def canonical(config: RunConfig) -> RunConfig:
    """`config` with every spec in its canonical form and the quorum decided: equal configurations are equal text."""
    rules = rules_of(config)
    return replace(
        config,
        compression=rules.upload.spec,
        download_compression=rules.download.spec,
        aggregation=rules.aggregator.spec,
        outer=rules.outer.spec,
        staleness=rules.policy.spec,
        weight=rules.weight.spec,
        quorum=quorum_of(config, rules.aggregator),
    )
