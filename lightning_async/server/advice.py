"""What works and is seldom wanted: told once, at a run's start, in the log and to the sinks. It refuses nothing."""

from __future__ import annotations

from lightning_async.server.rules import Rules


def advice(rules: Rules) -> list[str]:
    """Sentences about combinations that cost accuracy, and what to choose instead (docs/aggregation.md, "Sparse")."""
    told = []
    sparse, wise = rules.upload.decode_sparse is not None, rules.aggregator.end is not None
    mixed = any(mix.spec.startswith("nnm(") for mix in rules.aggregator.mixes)
    if sparse and wise and rules.robust and rules.filter is None and not mixed:
        told.append(
            f"{rules.spec} decides coordinate by coordinate, and {rules.upload.spec} leaves most of them out: where "
            "few workers sent a value, the rule keeps a zero, and what was sent is lost. Put nnm before it, choose a "
            "rule that keeps whole updates, such as multi_krum, or a codec that sends every number, such as int8"
        )
    return told
