"""What every table of members promises: names, specs, exports and the rows of the docs agree."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lightning_async import aggregation, attacks, codecs, outer, scheduling, staleness
from lightning_async.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Family:
    """A table, what makes a member of text, and where its members are told of."""

    table: Mapping[str, Callable[..., Any]]
    make: Callable[[Any], Any]
    package: Any
    page: str = ""
    exported: bool = True


RULES = {**aggregation.AGGREGATORS, **aggregation.FILTERS}
FAMILIES = {
    "codec": Family(codecs.CODECS, codecs.codec, codecs, "codecs.md", exported=False),
    "aggregator": Family(RULES, aggregation.rule, aggregation, "aggregation.md"),
    "outer optimizer": Family(outer.OUTERS, outer.outer, outer, "staleness-and-outer.md"),
    "staleness policy": Family(staleness.POLICIES, staleness.policy, staleness, "staleness-and-outer.md"),
    "staleness weight": Family(staleness.WEIGHTS, staleness.weight, staleness, "staleness-and-outer.md"),
    "scheduler": Family(scheduling.SCHEDULERS, scheduling.scheduler, scheduling, "scheduling.md"),
    "predictor": Family(scheduling.PREDICTORS, scheduling.predictor, scheduling, "scheduling.md"),
    "attack": Family(attacks.ATTACKS, attacks.attack, attacks),
}
# Members that have no defaults.
SAMPLES = {
    "pipeline": "pipeline(clip_norm(c=10.0), nnm(f=1), trimmed_mean(f=1))",
    "chain": "chain(topk(density=0.01), int8(block=64))",
    "error_feedback": "error_feedback(topk(), beta=0.9)",
    "by_size": "by_size(int8(), fp16())",
    "fast": "fast(sign_flip(k=10.0), speed=10.0)",
    "scale": "scale(k=3.0)",
    "label_flip": "label_flip(classes=10)",
    "own": "own(path='math:floor')",
    "stale_replay": "stale_replay(delay=3)",
    "centered_clipping": "centered_clipping(tau=2.0)",
    "zeno": "zeno(rho=0.1)",
    "kardam": "kardam(f=1)",
} | {name: f"{name}(f=2)" for name in ("trimmed_mean", "meamed", "krum", "multi_krum", "bulyan", "mda", "monna")}
MEMBERS = [(family, name) for family, row in FAMILIES.items() for name in row.table]


@pytest.mark.parametrize(("family", "name"), MEMBERS)
def test_a_spec_is_canonical_and_makes_an_equal_member(family: str, name: str) -> None:
    row = FAMILIES[family]
    member = row.make(SAMPLES.get(name, f"{name}()"))
    again = row.make(member.spec)
    assert again.spec == member.spec
    assert again == member
    assert member.spec.startswith(name), "the spec begins with the name in the table"
    assert row.make(member) is member
    assert row.make(f"  {member.spec} ").spec == member.spec


@pytest.mark.parametrize(("family", "name"), MEMBERS)
def test_the_name_is_the_factorys_and_is_exported(family: str, name: str) -> None:
    row = FAMILIES[family]
    assert row.table[name].__name__ == name
    assert row.table[name].__doc__
    if row.exported:
        assert getattr(row.package, name) is row.table[name]
        assert name in row.package.__all__


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_unknown_is_refused_with_the_names_that_are_known(family: str) -> None:
    row = FAMILIES[family]
    with pytest.raises(ConfigError, match=f"unknown {family} 'nobody'; known: .*{next(iter(sorted(row.table)))}"):
        row.make("nobody")
    with pytest.raises(ConfigError):
        row.make(f"{next(iter(row.table))}(no_such_argument=1)")


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.page])
def test_the_docs_have_one_row_for_each_member(family: str) -> None:
    row = FAMILIES[family]
    told = re.findall(r"^\| `(\w+)", (DOCS / row.page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [name for name in row.table if told.count(name) != 1] == []


def test_the_defaults_in_the_docs_are_those_of_the_code() -> None:
    text = (DOCS / "staleness-and-outer.md").read_text(encoding="utf-8")
    for family in ("outer optimizer", "staleness policy", "staleness weight"):
        for name in FAMILIES[family].table:
            assert f"| `{FAMILIES[family].make(f'{name}()').spec}` |" in text
