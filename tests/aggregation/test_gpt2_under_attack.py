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
from examples.experiments.attacked import Fleet, arguments, text

pytestmark = pytest.mark.slow
ROBUST = "pipeline(nnm(f=2), trimmed_mean(f=2))"
ATTACKS = ("sign_flip(k=10.0)", "alie()", "ipm(epsilon=10.0)", "scale(k=100.0)", "gaussian_noise(sigma=20.0)")
VERSIONS, SHARE = 8, 0.02  # of the loss


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Arguments and data; the text is a part of the standard library, so that it is prepared in seconds."""
    words = ["--text", str(Path(asyncio.__file__).parent), "--cache", str(tmp_path_factory.mktemp("text"))]
    args = arguments([*words, "--held-out", "0.2", "--lr", "2e-3", "--warmup", "4"])
    data = text(args)

    @cache
    def loss(rule: str, how: str | None) -> float:
        return Fleet(rule, how, data, args).run(VERSIONS).loss()

    start = Fleet("mean", None, data, args).loss()
    return start, loss


def test_the_attack_free_run_learns(setting):
    start, loss = setting
    assert loss("mean", None) < 0.9 * start


@pytest.mark.parametrize("how", ATTACKS)
def test_a_robust_rule_learns_as_well_under_attack(setting, how):
    _, loss = setting
    assert loss(ROBUST, how) < (1 + SHARE) * loss("mean", None)


def test_the_mean_learns_nothing_then(setting):
    """So the test above is red where its rule is replaced by the mean."""
    start, loss = setting
    assert not loss("mean", "sign_flip(k=10.0)") < start
