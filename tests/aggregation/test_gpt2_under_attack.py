"""Nano GPT-2 on real text, n = 11, f = 2, asynchronous: a robust rule learns as without an attack, the mean does not.

A few versions only, of examples/experiments/attacked.py: enough for the loss of the held-out files to fall by more than
any difference between the runs. docs/results.md has longer ones.
"""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("transformers")
from examples.experiments.attacked import RULES, Fleet, arguments, text

pytestmark = pytest.mark.slow
COORDINATE, SELECTION, CENTRE = RULES
HELD = [
    (COORDINATE, "sign_flip(k=10.0)", "random"),
    (SELECTION, "sign_flip(k=10.0)", "random"),
    (CENTRE, "sign_flip(k=10.0)", "random"),
    (COORDINATE, "alie()", "random"),
    (SELECTION, "ipm(epsilon=10.0)", "random"),
    (CENTRE, "scale(k=100.0)", "random"),
    (COORDINATE, "gaussian_noise(sigma=20.0)", "random"),
    (COORDINATE, "sign_flip(k=10.0)", "sources"),
]
VERSIONS, SHARE = {"random": 8, "sources": 3}, 0.02  # of the loss


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Arguments and data; the text is a part of the standard library, so that it is prepared in seconds."""
    words = ["--text", str(Path(asyncio.__file__).parent), "--cache", str(tmp_path_factory.mktemp("text"))]
    args = arguments([*words, "--held-out", "0.2", "--lr", "2e-3", "--warmup", "4"])
    data = text(args)

    @cache
    def loss(rule: str, how: str | None, split: str) -> float:
        return Fleet(rule, how, data, args, split).run(VERSIONS[split]).held_out()[0]

    start = Fleet("mean", None, data, args).held_out()[0]
    return start, loss


@pytest.mark.parametrize(("split", "share"), [("random", 0.9), ("sources", 0.97)])
def test_the_attack_free_run_learns(setting, split, share):
    start, loss = setting
    assert loss("mean", None, split) < share * start


@pytest.mark.parametrize(("rule", "how", "split"), HELD)
def test_a_robust_rule_learns_as_well_under_attack(setting, rule, how, split):
    _, loss = setting
    assert loss(rule, how, split) < (1 + SHARE) * loss("mean", None, split)


@pytest.mark.parametrize("split", VERSIONS)
def test_the_mean_learns_nothing_then(setting, split):
    """So the test above is red where its rule is replaced by the mean."""
    start, loss = setting
    assert not loss("mean", "sign_flip(k=10.0)", split) < start
