"""The numbers that the papers demand: the smallest n of each rule, and the refusals, in words and in time."""

from __future__ import annotations

import pytest
import torch

from lightning_async.aggregation import aggregator, bucketing, clip_norm, krum, median, multi_krum, nnm, pipeline
from lightning_async.errors import ConfigError

SMALLEST = {
    "mean": 1,
    "median": 3,
    "trimmed_mean(f=0)": 1,
    "trimmed_mean(f=2)": 5,
    "meamed(f=3)": 7,
    "krum(f=1)": 5,
    "krum(f=3)": 9,
    "multi_krum(f=2)": 7,
    "multi_krum(f=2, m=5)": 9,
    "bulyan(f=1)": 7,
    "bulyan(f=2)": 11,
    "mda(f=2)": 5,
    "monna(f=2)": 7,
    "monna(f=2, pivot=0)": 5,
    "geometric_median": 3,
    "centered_clipping(tau=1.0)": 3,
    "pipeline(nnm(f=4), median)": 9,
    "pipeline(nnm(f=1), krum(f=2))": 7,
    "pipeline(bucketing(s=2), trimmed_mean(f=2))": 9,
    "pipeline(bucketing(s=3), krum(f=1))": 13,
    "pipeline(bucketing(s=2), nnm(f=1), bulyan(f=1))": 13,
    "pipeline(clip_norm(c=1.0), mean)": 1,
}


@pytest.mark.parametrize(("spec", "smallest"), SMALLEST.items())
def test_smallest(spec, smallest):
    assert aggregator(spec).smallest == smallest


@pytest.mark.parametrize("f", [1, 2, 3])
@pytest.mark.parametrize("s", [1, 2, 3])
@pytest.mark.parametrize("n", range(1, 25))
def test_bucketing_tolerates_f_below_n_over_2s(n, s, f):
    rule = aggregator(f"pipeline(bucketing(s={s}), trimmed_mean(f={f}))")
    assert (n >= rule.smallest) == (f < n / (2 * s))


def test_nine_workers_are_one_attacker_for_bulyan_not_two():
    assert aggregator("bulyan(f=1)").smallest <= 9
    with pytest.raises(ConfigError, match=r"bulyan\(f=2\) got 9 updates.*n >= 4f \+ 3 = 11.*at least 11 updates"):
        aggregator("bulyan(f=2)").check(9)


def test_a_refusal_names_the_member_of_the_chain_that_is_short():
    with pytest.raises(ConfigError, match=r"got 9 updates \(5 rows after the preprocessing\); krum\(f=2\) needs"):
        aggregator("pipeline(bucketing(s=2), krum(f=2))").check(9)
    with pytest.raises(ConfigError, match=r"got 4 updates; nnm\(f=2\) needs n > 2f = 4, so at least 5"):
        aggregator("pipeline(nnm(f=2), median)").check(4)


@pytest.mark.parametrize(
    "spec",
    [
        "krum",
        "krum(f=-1)",
        "krum(f=0.3)",
        "krum(f=True)",
        "krum(share=2)",
        "trimmed_mean(f='2')",
        "multi_krum(f=2, m=0)",
        "clip_norm(c=1.0)",
        "nnm(f=2)",
        "pipeline(clip_norm(c=0.0), mean)",
        "pipeline(clip_norm(c=-1.0), mean)",
        "pipeline(bucketing(s=0), mean)",
        "centered_clipping(tau=0)",
        "centered_clipping(tau=1.0, iterations=0)",
        "geometric_median(tolerance=-1)",
        "pipeline()",
        "pipeline(mean, nnm(f=1))",
        "pipeline(nnm(f=1))",
        "pipeline(median, median)",
        "__import__('os')",
        "unknown",
        "",
    ],
)
def test_what_cannot_work_is_refused_at_once(spec):
    with pytest.raises(ConfigError):
        aggregator(spec)


def test_objects_and_text_are_the_same_thing():
    assert aggregator("pipeline(clip_norm(c=2.0), nnm(f=1), krum(f=1))") == pipeline(clip_norm(2.0), nnm(1), krum(1))
    assert pipeline(bucketing(s=2), median()).spec == "pipeline(bucketing(s=2), median())"
    assert multi_krum(2, 3).spec == "multi_krum(f=2, m=3)"
    assert krum(1) != krum(2)
    with pytest.raises(ConfigError, match="got 3 for an aggregator"):
        aggregator(3)  # type: ignore[arg-type]


def test_a_pipeline_is_as_robust_as_its_rule():
    assert not pipeline(nnm(2), aggregator("mean")).robust
    assert pipeline(nnm(2), median()).robust
    assert pipeline(clip_norm(1.0), pipeline(nnm(2), median())).spec.count("pipeline") == 2


@pytest.mark.parametrize(
    ("rows", "weights", "problem"),
    [
        ([torch.zeros(4)] * 3, [1.0, 1.0], "one weight > 0 per row"),
        ([torch.zeros(4)] * 3, [1.0, 0.0, 1.0], "one weight > 0 per row"),
        ([torch.zeros(4)] * 3, [1.0, -1.0, 1.0], "one weight > 0 per row"),
        ([torch.zeros(4)] * 3, [1.0, float("nan"), 1.0], "one weight > 0 per row"),
        ([torch.zeros(4), torch.zeros(5), torch.zeros(4)], [1.0] * 3, r"rows of lengths \[4, 5\]"),
        ([torch.zeros(4, dtype=torch.float64)] * 3, [1.0] * 3, "contiguous float32"),
        ([torch.zeros(2, 2)] * 3, [1.0] * 3, "contiguous float32"),
        ([torch.zeros(8)[::2]] * 3, [1.0] * 3, "contiguous float32"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, weights, problem):
    for rule in (aggregator("mean"), median()):
        with pytest.raises(ConfigError, match=problem):
            rule.apply(rows, weights, rule.init(4))
