"""How the long rows are read: weights after selection, no copy of the size of n models, sparse stays sparse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peak import peak_memory

from lightning_async.aggregation import aggregator
from lightning_async.aggregation import blocks as blocks_module
from lightning_async.aggregation.blocks import BLOCK, blocks, gram, norms, weighted_sum
from lightning_async.aggregation.distances import squared
from lightning_async.aggregation.stream import reads
from lightning_async.sparse import Sparse

RULES = [
    "mean",
    "median",
    "trimmed_mean(f=2)",
    "meamed(f=2)",
    "krum(f=2)",
    "multi_krum(f=2)",
    "bulyan(f=1)",
    "geometric_median",
    "centered_clipping(tau=10.0)",
    "pipeline(arc(f=2), nnm(f=2), trimmed_mean(f=2))",
]


def rows_of(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(d, generator=generator) for _ in range(n)]


def apply(spec, rows, weights):
    rule = aggregator(spec)
    return rule.apply(rows, weights, rule.init(rows[0].numel()))


def test_one_row_is_its_own_mean_without_a_copy():
    row = torch.randn(50)
    outcome = apply("mean", [row], [0.3])
    assert outcome.vector is row
    assert outcome.influence == [1.0]


def test_the_row_that_krum_chose_is_not_copied():
    rows = rows_of(7, 50)
    assert any(apply("krum(f=2)", rows, [1.0] * 7).vector is row for row in rows)


def test_mean_is_weighted_and_normalised_by_the_sum_of_weights():
    rows, weights = rows_of(4, 1000), [3.0, 1.0, 0.5, 7.25]
    expected = sum(row.double() * w for row, w in zip(rows, weights, strict=True)) / sum(weights)
    torch.testing.assert_close(apply("mean", rows, weights).vector.double(), expected, atol=1e-6, rtol=1e-5)
    assert apply("mean", rows, weights).influence == pytest.approx([w / 7.25 for w in weights])


def test_weights_act_after_the_selection_never_on_it():
    rows = rows_of(11, 400)
    weights = [0.1 + 0.2 * i for i in range(11)]
    rule = aggregator("multi_krum(f=2, m=4)")
    chosen = [i for i, share in enumerate(rule.apply(rows, [1.0] * 11, {}).influence) if share > 0]
    weighted = rule.apply(rows, weights, {})
    assert [i for i, share in enumerate(weighted.influence) if share > 0] == chosen
    expected = sum(rows[i] * weights[i] for i in chosen) / sum(weights[i] for i in chosen)
    torch.testing.assert_close(weighted.vector, expected, atol=1e-6, rtol=1e-5)


def test_weights_leave_a_row_that_is_not_mixed_as_it_is():
    """1 / w x w is not always 1: rows that are then mixtures of one would be copied, at several times the cost."""
    weights = [0.5 + 0.05 * i for i in range(10)]
    made = aggregator("trimmed_mean(f=2)").plan(np.zeros((10, 10)), weights, {})
    np.testing.assert_array_equal(made.mixing, np.eye(10))
    assert made.weights == pytest.approx(weights)


def test_a_heavy_attacker_is_trimmed_all_the_same():
    rows = rows_of(11, 400)
    rows[0] = torch.full((400,), 1e6)
    assert apply("trimmed_mean(f=2)", rows, [1e6] + [1.0] * 10).vector.abs().max() < 5


def test_trimmed_mean_weighs_what_it_kept():
    x = torch.tensor([[9.0], [1.0], [2.0], [4.0], [-9.0]])
    vector = apply("trimmed_mean(f=1)", list(x), [5.0, 1.0, 2.0, 4.0, 5.0]).vector
    assert vector.item() == pytest.approx((1 * 1 + 2 * 2 + 4 * 4) / 7)


def test_without_trimming_every_mixture_is_the_weighted_mean():
    rows, weights = rows_of(6, 300), [1.0, 0.5, 0.25, 1.0, 0.75, 0.1]
    mean = apply("mean", rows, weights).vector
    for spec in (
        "trimmed_mean(f=0)",
        "pipeline(nnm(f=0), trimmed_mean(f=0))",
        "pipeline(bucketing(s=3), trimmed_mean(f=0))",
        "pipeline(bucketing(s=3), mean)",
        "pipeline(clip_norm(c=1000.0), mean)",
    ):
        torch.testing.assert_close(apply(spec, rows, weights).vector, mean, atol=1e-6, rtol=1e-5)


def test_clipping_keeps_its_lengths_under_weights():
    rows, weights = rows_of(5, 100), [1.0, 2.0, 1.0, 3.0, 0.5]
    expected = apply("mean", [row / row.norm() for row in rows], weights).vector
    torch.testing.assert_close(apply("pipeline(clip_norm(c=1.0), mean)", rows, weights).vector, expected)


def test_influence_of_coordinate_rules_counts_kept_values():
    rows = rows_of(11, 20000)
    rows[3] = rows[3] + 100.0
    influence = apply("trimmed_mean(f=2)", rows, [1.0] * 11).influence
    assert influence[3] == 0.0
    kept = torch.stack(rows).argsort(0).argsort(0)
    exact = ((kept >= 2) & (kept < 9)).float().mean(1)
    np.testing.assert_allclose(influence, (exact / exact.max()).numpy(), atol=0.08)


@pytest.mark.parametrize("spec", RULES)
def test_peak_extra_memory_is_a_block_and_two_vectors(spec):
    n, d = 10, 2_000_000
    rows, rule = rows_of(n, d), aggregator(spec)
    state = rule.init(d)
    apply(spec, [row[:1000] for row in rows], [1.0] * n)
    with peak_memory() as peak_bytes:
        rule.apply(rows, [1.0] * n, state)
        peak = peak_bytes()
    block = 16 * BLOCK
    assert peak <= (n + 1) * block + 2 * d * 4
    assert peak < n * d * 4 / 2


@pytest.mark.parametrize("spec", RULES)
def test_sparse_rows_never_become_a_dense_matrix(spec):
    n, d, nonzeros = 11, 8_000_000, 8000
    rows = []
    for seed in range(n):
        generator = np.random.default_rng(seed)
        indices = np.unique(generator.integers(0, d, nonzeros))
        values = generator.normal(size=len(indices)).astype(np.float32)
        rows.append(Sparse(torch.from_numpy(indices), torch.from_numpy(values), d))
    rule = aggregator(spec)
    state = rule.init(d)
    with peak_memory() as peak_bytes:
        rule.apply(rows, [1.0] * n, state)
        peak = peak_bytes()
    assert peak <= 16 * (n + 1) * BLOCK + 2 * d * 4 + 16 * n * nonzeros


def test_gram_keeps_the_digits_of_nearly_equal_updates():
    """Distances of 1e-3 between rows of length 1e3 vanish in a float32 product; Krum would choose by noise."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=100_000) * 3
    rows = [torch.from_numpy((common + 1e-5 * rng.normal(size=100_000)).astype(np.float32)) for _ in range(7)]
    wide = np.stack([row.double().numpy() for row in rows])
    exact = ((wide[:, None] - wide[None]) ** 2).sum(-1)
    g = gram(rows)
    found = np.diag(g)[:, None] + np.diag(g)[None] - 2 * g
    np.testing.assert_allclose(found, exact, atol=1e-3 * exact.max())


def test_norms_alone_are_read_where_they_suffice():
    wanted = {
        "median": "count",
        "pipeline(bucketing(s=2), median)": "count",
        "pipeline(clip_norm(c=1.0), median)": "norms",
        "pipeline(clip_norm(c=1.0), bucketing(s=2), median)": "norms",
        "pipeline(bucketing(s=2), clip_norm(c=1.0), median)": "gram",
        "pipeline(arc(f=1), nnm(f=1), median)": "gram",
        "krum(f=1)": "gram",
    }
    assert {spec: reads(aggregator(spec).mixes) for spec in wanted} == wanted
    rows = rows_of(4, 1000)
    np.testing.assert_allclose(norms(rows), np.diag(np.diag(gram(rows))), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_sparse_blocks_cover_every_entry_once(size):
    generator = torch.Generator().manual_seed(size)
    full = [torch.randn(999, generator=generator) * (torch.rand(999, generator=generator) < 0.2) for _ in range(5)]
    rows = [Sparse(row.nonzero()[:, 0], row[row != 0], 999) for row in full]
    seen = np.zeros((5, 999), np.float32)
    for columns, block in blocks(rows, size):
        assert not seen[:, columns].any()
        seen[:, columns] = block
    np.testing.assert_array_equal(seen, torch.stack(full).numpy())


def test_rows_without_entries_aggregate_to_zero():
    rows = [Sparse(torch.empty(0, dtype=torch.int64), torch.empty(0), 10) for _ in range(11)]
    for spec in RULES:
        rule = aggregator(spec)
        assert torch.equal(rule.apply(rows, [1.0] * 11, rule.init(10)).vector, torch.zeros(10))


def test_indices_of_32_bits_are_welcome():
    row = Sparse(torch.tensor([1, 3], dtype=torch.int32), torch.tensor([1.0, 2.0]), 5)
    for spec in ("mean", "median", "krum(f=0)"):
        rule = aggregator(spec)
        expected = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0])
        torch.testing.assert_close(rule.apply([row] * 3, [1.0] * 3, {}).vector, expected)


def test_weighted_sum_of_dense_and_sparse_rows(monkeypatch):
    monkeypatch.setattr(blocks_module, "BLOCK", 32)
    rows = [*rows_of(2, 100), Sparse(torch.tensor([0, 99]), torch.tensor([4.0, 8.0]), 100)]
    expected = rows[0] * 0.5 - rows[1]
    expected[0] += 1.0
    expected[99] += 2.0
    torch.testing.assert_close(weighted_sum(rows, [0.5, -1.0, 0.25]), expected)


def test_rows_that_mixing_made_equal_are_at_no_distance():
    g = gram(rows_of(6, 1000, seed=1))
    a, b = np.array([3.0, 5, 7, 0, 0, 0]) / 15, np.array([3.0, 5, 7, 0, 0, 1e-17]) / 15
    noisy = np.stack([a, b, a[::-1]])
    distances = squared(noisy @ g @ noisy.T * (1 + 7e-15 * np.eye(3, k=1)))
    assert distances[0, 1] == 0.0
    assert distances[0, 2] > 1.0
    assert np.array_equal(distances, distances.T)
