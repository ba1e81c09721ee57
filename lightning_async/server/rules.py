"""The rules of a run as objects: every spec of a RunConfig, made once, checked against each other at start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lightning_async.aggregation import Aggregator, Filter, rule
from lightning_async.codecs import Codec, download_codec, upload_codec
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.outer import Outer, outer
from lightning_async.scheduling import Predictor, Scheduler, Sizing, predictor, scheduler, sizing
from lightning_async.server.private import NOTHING, Private
from lightning_async.staleness import Policy, Weight, policy, product, weight

EXACT, FAR = "none", "int8"  # what travels within one machine, and over a network, where nobody has said it


@dataclass(frozen=True)
class Rules:
    """What the coordinator works with. With a `filter`, the aggregator only makes the steps until that is ready."""

    upload: Codec
    download: Codec
    aggregator: Aggregator
    filter: Filter | None
    outer: Outer
    policy: Policy
    weight: Weight
    sizing: Sizing
    scheduler: Scheduler
    predictor: Predictor
    private: Private = NOTHING

    @property
    def spec(self) -> str:
        """What `aggregation` names."""
        return self.aggregator.spec if self.filter is None else self.filter.spec

    @property
    def robust(self) -> bool:
        """Whether hostile workers cannot steer the steps."""
        return self.aggregator.robust or self.filter is not None

    @property
    def smallest(self) -> int:
        """The fewest workers with which the rule's condition can hold."""
        return self.aggregator.smallest if self.filter is None else self.filter.demand.least


def rules_of(config: RunConfig, private: Private = NOTHING) -> Rules:
    """The objects that `config` names. Raises ConfigError where one is unknown or they cannot work together."""
    upload, made = upload_codec(config.compression or EXACT), rule(config.aggregation)
    rules = Rules(
        upload=upload,
        download=download_codec(config.download_compression, upload),
        aggregator=made.start if isinstance(made, Filter) else made,
        filter=made if isinstance(made, Filter) else None,
        outer=outer(config.outer),
        policy=policy(config.staleness),
        weight=_weight(config, outer(config.outer)),
        sizing=sizing(config.local_steps),
        scheduler=scheduler(config.scheduler),
        predictor=predictor(config.predictor),
        private=private,
    )
    if any(mix.trusts for mix in rules.aggregator.mixes):
        raise ConfigError(
            f"{rules.spec} trusts the row of a number, and in a run no row is trusted; leave the pivot out, or choose "
            "zeno(rho=0.1), which judges by data of the server's owner"
        )
    _check_quorum(config, rules)
    if config.fragments > 1 and rules.policy.bound == 0:
        raise ConfigError(
            f"fragments={config.fragments} with {rules.policy.spec}: workers that come at different times would wait "
            "for each other with different pieces; leave fragments out, or allow staleness"
        )
    if config.quarantine_below is not None and not rules.robust:
        raise ConfigError(
            f"quarantine_below={config.quarantine_below} with {rules.spec}: reputation is measured against "
            "the aggregate, and a hostile worker can make that its own; choose a robust rule, such as trimmed_mean(f=1)"
        )
    return rules


def settled(config: RunConfig, far: bool) -> RunConfig:
    """`config` with its codec of uploads decided; `far`: workers come over a network."""
    if config.compression is not None:
        return config
    return replace(config, compression=FAR if far else EXACT)


def _weight(config: RunConfig, method: Outer) -> Weight:
    """The run's weight of staleness, times the one that is part of the outer optimizer's method."""
    own = weight(config.weight)
    return product(own, weight(method.weight)) if method.weight else own


def check_private(rules: Rules) -> None:
    """Raises ConfigError where the rules need what only the server's owner can give, and it is not there."""
    if rules.filter is not None and rules.filter.every and rules.private.validation is None:
        raise ConfigError(
            f"{rules.spec} judges updates against one that the server's owner trusts, and got no validation function; "
            'give validation="module:function" to `lightning-async serve` or AsyncWANStrategy, or the function itself '
            "to ServerThread (docs/aggregation.md)"
        )


def quorum_of(config: RunConfig, rules: Rules) -> int | Literal["all"]:
    """The quorum of the run: the one asked for, or the default.

    For a robust rule that is n - floor((n - 1) / 3) of n expected workers: as many may be silent, and as many of those
    who answer hostile, and honest updates are still the majority of a step. A filter needs none.
    """
    if config.quorum is not None:
        return config.quorum
    if rules.filter is not None:
        return 1
    share = config.workers - (config.workers - 1) // 3 if rules.robust else 1
    return max(share, _least(rules))


def _least(rules: Rules) -> int:
    return max(2 if rules.robust and rules.filter is None else 1, rules.smallest)


def _check_quorum(config: RunConfig, rules: Rules) -> None:
    """Refuse what can never make a step. One expected worker says nothing: it is the default, and others may join."""
    quorum, least = config.quorum, _least(rules)
    if rules.filter is not None:
        _check_filter(config, rules.filter)
    elif isinstance(quorum, int) and quorum < least:
        raise ConfigError(f"quorum={quorum} can never satisfy {rules.spec}; the smallest quorum that does is {least}")
    elif not isinstance(quorum, int) and 1 < config.workers < least:
        raise ConfigError(
            f"{config.workers} workers can never satisfy {rules.spec}; the smallest quorum that does is {least}: "
            f"expect {least} workers or more, lower f, or set quorum={least} where others will join"
        )


def _check_filter(config: RunConfig, chosen: Filter) -> None:
    if config.fragments != 1:
        raise ConfigError(
            f"fragments={config.fragments} with {chosen.spec}, which judges whole updates; leave fragments out, or "
            "choose a rule that compares the updates of a quorum, such as trimmed_mean(f=1)"
        )
    if config.quorum not in (None, 1):
        raise ConfigError(
            f"quorum={config.quorum!r} with {chosen.spec}, which judges every update by itself; leave quorum out, or "
            "choose a rule that compares the updates of a quorum, such as trimmed_mean(f=1)"
        )
    if 1 < config.workers < chosen.demand.least:
        raise ConfigError(
            f"{config.workers} workers can never satisfy {chosen.spec}, which needs {chosen.demand.why}: expect "
            f"{chosen.demand.least} workers or more, or lower f"
        )


def canonical(config: RunConfig) -> RunConfig:
    """`config` with every spec in its canonical form and the quorum decided: equal configurations are equal text."""
    rules = rules_of(config)
    return replace(
        config,
        local_steps=rules.sizing.spec,
        compression=rules.upload.spec,
        download_compression=rules.download.spec,
        aggregation=rules.spec,
        outer=rules.outer.spec,
        staleness=rules.policy.spec,
        weight=weight(config.weight).spec,
        scheduler=rules.scheduler.spec,
        predictor=rules.predictor.spec,
        quorum=quorum_of(config, rules),
    )
