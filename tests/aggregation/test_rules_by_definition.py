"""Each rule against a second implementation, loop by loop as its paper writes it, on the whole [n, d] matrix."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lightning_async.aggregation import aggregator

SIZES = [(11, 2), (12, 2), (7, 1), (15, 3), (23, 5)]


def distance(a, b):
    return float(np.sqrt(np.sum((a - b) ** 2)))


def trimmed_mean(x, f):
    return np.array([np.mean(sorted(column)[f : len(x) - f]) for column in x.T])


def median(x):
    return np.array([np.median(column) for column in x.T])


def around_median(x, keep):
    result = []
    for column in x.T:
        centre = np.median(column)
        result.append(np.mean(sorted(column, key=lambda value: (abs(value - centre), value))[:keep]))
    return np.array(result)


def krum_scores(x, neighbours):
    scores = []
    for i in range(len(x)):
        others = sorted(distance(x[i], x[j]) ** 2 for j in range(len(x)) if j != i)
        scores.append(sum(others[:neighbours]))
    return scores


def krum(x, f):
    return x[int(np.argmin(krum_scores(x, len(x) - f - 2)))]


def multi_krum(x, f, m):
    return x[np.argsort(krum_scores(x, len(x) - f - 2))[:m]].mean(axis=0)


def bulyan(x, f):
    left, chosen = list(range(len(x))), []
    while len(chosen) < len(x) - 2 * f:
        scores = krum_scores(x[left], max(1, len(left) - f - 2))
        total = krum_scores(x[left], len(left) - 1)
        best = min(range(len(left)), key=lambda i: (round(scores[i], 9), total[i]))
        chosen.append(left.pop(best))
    return around_median(x[chosen], len(x) - 4 * f)


def mda(x, f):
    between = {(i, j): distance(x[i], x[j]) for i, j in itertools.combinations(range(len(x)), 2)}

    def size(rows):
        pairs = [between[pair] for pair in itertools.combinations(rows, 2)]
        return round(max(pairs), 9), sum(pair**2 for pair in pairs)

    return x[list(min(itertools.combinations(range(len(x)), len(x) - f), key=size))].mean(axis=0)


def nearest_to(x, pivot, keep):
    return x[sorted(range(len(x)), key=lambda i: distance(x[i], pivot))[:keep]].mean(axis=0)


def nnm(x, f):
    return np.stack([nearest_to(x, row, len(x) - f) for row in x])


def clip(x, limit):
    return np.stack([row * min(1.0, limit / np.linalg.norm(row)) for row in x])


def arc(x, f):
    n = len(x)
    lengths = sorted((np.linalg.norm(row) for row in x), reverse=True)
    return clip(x, lengths[2 * f * (n - f) // n])


def geometric_median(x):
    z = x.mean(axis=0)
    for _ in range(20000):
        pull = np.array([1.0 / max(distance(row, z), 1e-12) for row in x])
        z = (pull[:, None] * x).sum(axis=0) / pull.sum()
    return z


def centered_clipping(x, start, tau, iterations):
    v = start
    for _ in range(iterations):
        v = v + sum((row - v) * min(1.0, tau / distance(row, v)) for row in x) / len(x)
    return v


def buckets(x, s, seed):
    order = np.random.default_rng(seed).permutation(len(x))
    return np.stack([x[order[i : i + s]].mean(axis=0) for i in range(0, len(x), s)])


def updates(n, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(0.3, 3.0, size=(n, 1))
    return (rng.normal(size=(n, 60)) * lengths * scale + 0.7).astype(np.float32)


def definitions(n, f):
    m = max(1, n - f - 4)
    table = {
        "mean": lambda x: x.mean(axis=0),
        "median": median,
        f"trimmed_mean(f={f})": lambda x: trimmed_mean(x, f),
        f"meamed(f={f})": lambda x: around_median(x, n - f),
        f"krum(f={f})": lambda x: krum(x, f),
        f"multi_krum(f={f})": lambda x: multi_krum(x, f, n - f - 2),
        f"multi_krum(f={f}, m={m})": lambda x: multi_krum(x, f, m),
        f"mda(f={f})": lambda x: mda(x, f),
        f"monna(f={f}, pivot=3)": lambda x: nearest_to(x, x[3], n - f),
        f"monna(f={f})": lambda x: nearest_to(x, krum(x, f), n - f),
        "centered_clipping(tau=4.0, iterations=3)": lambda x: centered_clipping(x, np.zeros(60), 4.0, 3),
        f"pipeline(nnm(f={f}), trimmed_mean(f={f}))": lambda x: trimmed_mean(nnm(x, f), f),
        f"pipeline(arc(f={f}), krum(f={f}))": lambda x: krum(arc(x, f), f),
        f"pipeline(arc(f={f}), nnm(f={f}), median)": lambda x: median(nnm(arc(x, f), f)),
        "pipeline(clip_norm(c=5.0), mean)": lambda x: clip(x, 5.0).mean(axis=0),
        "pipeline(clip_to_median_norm, median)": lambda x: median(clip(x, np.median(np.linalg.norm(x, axis=1)))),
        "pipeline(bucketing(s=2), median)": lambda x: median(buckets(x, 2, 0)),
        "pipeline(bucketing(s=2), clip_norm(c=4.0), mean)": lambda x: clip(buckets(x, 2, 0), 4.0).mean(axis=0),
    }
    return table | ({f"bulyan(f={f})": lambda x: bulyan(x, f)} if n >= 4 * f + 3 else {})


@pytest.mark.parametrize(("n", "f", "spec"), [(n, f, spec) for n, f in SIZES for spec in definitions(n, f)])
def test_rule_equals_its_definition(n, f, spec):
    for seed in range(3):
        x = updates(n, seed)
        expected = definitions(n, f)[spec](x.astype(np.float64))
        torch.testing.assert_close(aggregator(spec)(torch.from_numpy(x)).numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("n", [5, 11, 20])
def test_geometric_median_is_the_fixed_point(n):
    x = updates(n, n)
    found = aggregator("geometric_median(tolerance=1e-9)")(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, geometric_median(x.astype(np.float64)), atol=2e-5)


def test_geometric_median_where_a_row_is_the_answer():
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(aggregator("geometric_median")(x), torch.zeros(2), atol=1e-4, rtol=0)


def test_centered_clipping_starts_from_the_previous_aggregate():
    rule, x = aggregator("centered_clipping(tau=3.0, iterations=2)"), updates(11, 1)
    rows, state, previous = [torch.from_numpy(row) for row in x], rule.init(60), np.zeros(60)
    for _ in range(4):
        outcome = rule.apply(rows, [1.0] * 11, state)
        previous, state = centered_clipping(x.astype(np.float64), previous, 3.0, 2), outcome.state
        np.testing.assert_allclose(outcome.vector.numpy(), previous, atol=1e-5)


def test_bucketing_shuffles_anew_from_the_secret_in_its_state():
    rule = aggregator("pipeline(bucketing(s=2), median)")
    x = updates(11, 1)
    rows, state = [torch.from_numpy(row) for row in x], rule.init(60, secret=5)
    for seed in (5, 6, 7):
        outcome = rule.apply(rows, [1.0] * 11, state)
        np.testing.assert_allclose(outcome.vector.numpy(), median(buckets(x, 2, seed)), atol=1e-6)
        state = outcome.state
    assert rule.spec == "pipeline(bucketing(s=2), median())", "who sees the spec does not see the seed"


@pytest.mark.parametrize("f", [1, 2, 3, 4])
def test_mda_is_exact_also_where_distances_repeat(f):
    rng = np.random.default_rng(f)
    for _ in range(10):
        x = rng.integers(0, 3, size=(10, 60)).astype(np.float32)
        x[rng.integers(0, 10)] = x[0]
        expected, found = mda(x, f), aggregator(f"mda(f={f})")(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_mda_of_many_workers_does_not_try_every_subset():
    x = torch.from_numpy(updates(60, 1))
    assert aggregator("mda(f=12)")(x).isfinite().all()
