"""The rules of a run as objects: every spec of a RunConfig, made once, checked against each other at start."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    if isinstance(config.quorum, int):
        _check_quorum(rules.aggregator, config.quorum)
    return rules


def _check_quorum(rule: Aggregator, quorum: int) -> None:
    if rule.robust and quorum < max(2, rule.smallest):
        raise ConfigError(
            f"quorum={quorum} can never satisfy {rule.spec}; the smallest quorum that does is {max(2, rule.smallest)}"
        )


def canonical(config: RunConfig) -> RunConfig:
    """`config` with every spec in its canonical form, so that equal configurations are equal text."""
    rules = rules_of(config)
    return replace(
        config,
        compression=rules.upload.spec,
        download_compression=rules.download.spec,
        aggregation=rules.aggregator.spec,
        outer=rules.outer.spec,
        staleness=rules.policy.spec,
        weight=rules.weight.spec,
    )
