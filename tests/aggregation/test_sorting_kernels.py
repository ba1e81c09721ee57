"""Sorting networks sort, and the compiled kernels give the numpy kernels' result to the last bit."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from lightning_async.aggregation import aggregator, kernels
from lightning_async.aggregation.networks import selecting, sorting

WHOLE = (
    "mean",
    "median",
    "trimmed_mean(f=2)",
    "meamed(f=2)",
    "krum(f=2)",
    "multi_krum(f=2)",
    "bulyan(f=2)",
    "mda(f=2)",
    "geometric_median",
    "centered_clipping(tau=100.0)",
    "pipeline(arc(f=2), nnm(f=2), trimmed_mean(f=2))",
    "pipeline(bucketing(s=2), median)",
)
LENGTHS = [1, 127, 128, 129, 8192, 20001]


def through(network, columns):
    lines = [column.copy() for column in columns]
    for i, k in network.tolist():
        lines[i], lines[k] = np.minimum(lines[i], lines[k]), np.maximum(lines[i], lines[k])
    return np.stack(lines)


@pytest.mark.parametrize("n", range(1, 13))
def test_network_sorts_every_sequence_of_zeros_and_ones(n):
    """By the 0-1 principle (Knuth, TAOCP 3, 5.3.4, theorem Z) it then sorts everything."""
    every = np.array(list(itertools.product([0, 1], repeat=n)), np.float32).T
    assert np.array_equal(through(sorting(n), every), np.sort(every, axis=0))


@pytest.mark.parametrize("n", [17, 50, 64, 101])
def test_network_sorts_many_rows(n):
    x = np.random.default_rng(n).normal(size=(n, 500))
    assert np.array_equal(through(sorting(n), x), np.sort(x, axis=0))


@pytest.mark.parametrize("n", range(1, 13))
def test_selecting_network_finds_every_range_of_ranks(n):
    every = np.array(list(itertools.product([0, 1], repeat=n)), np.float32).T
    for low, high in itertools.combinations(range(n + 1), 2):
        found = np.sort(through(selecting(n, low, high), every)[low:high], axis=0)
        assert np.array_equal(found, np.sort(every, axis=0)[low:high])


def test_selecting_is_less_work_than_sorting():
    assert len(selecting(11, 5, 6)) < len(sorting(11))
    assert len(selecting(10, 0, 10)) == 0
    assert len(selecting(10, 2, 3, 7, 8)) < len(sorting(10))


@pytest.mark.parametrize("n", range(1, 11))
def test_a_network_with_several_edges_parts_at_each(n):
    every = np.array(list(itertools.product([0, 1], repeat=n)), np.float32).T
    for low, high in itertools.combinations(range(n + 1), 2):
        found, wanted = through(selecting(n, low, low + 1, high - 1, high), every), np.sort(every, axis=0)
        assert np.array_equal(found[[low, high - 1]], wanted[[low, high - 1]])


def rows_with_ties(n, b):
    rng = np.random.default_rng(n * b)
    rows = [rng.normal(size=b).astype(np.float32) for _ in range(n)]
    for row in rows[::2]:
        row[rng.random(b) < 0.3] = 0.0
    rows[0][:: max(1, b // 7)] = np.float32(3e38)
    return rows, rng.choice([0.25, 0.5, 1.0], n)


def results(rows, weights):
    n, made = len(rows), []
    for given in (None, weights):
        for low, high in {(0, n), ((n - 1) // 2, n // 2 + 1), (n // 4, n - n // 4)}:
            made.append(np.empty(len(rows[0]), np.float32))
            kernels.middle(rows, given, low, high, made[-1])
        for keep in {1, n // 2 + 1, n}:
            made.append(np.empty(len(rows[0]), np.float32))
            kernels.nearest(rows, given, keep, made[-1])
    for given in (weights, [0.3] * n):
        made.append(np.empty(len(rows[0]), np.float32))
        kernels.weighted_sum(rows, list(given), made[-1])
    return made


@pytest.mark.skipif(kernels.compiled() is None, reason="numba is not installed")
@pytest.mark.parametrize("n", [1, 2, 5, 10, 11, 50])
@pytest.mark.parametrize("b", LENGTHS)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_compiled_equals_numpy_to_the_last_bit(n, b, monkeypatch):
    rows, weights = rows_with_ties(n, b)
    fast = results(rows, weights)
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    for a, c in zip(fast, results(rows, weights), strict=True):
        np.testing.assert_array_equal(a, c)


@pytest.mark.skipif(kernels.compiled() is None, reason="numba is not installed")
@pytest.mark.parametrize("weights", [[1.0] * 11, [0.5 + 0.05 * i for i in range(11)]])
@pytest.mark.parametrize("spec", WHOLE)
def test_a_whole_rule_without_numba_gives_the_same(spec, weights, monkeypatch):
    """To the last bit where no distances are measured."""
    rows = [torch.from_numpy(row) for row in np.random.default_rng(3).normal(size=(11, 5000)).astype(np.float32)]
    rule = aggregator(spec)
    fast = rule.apply(rows, weights, rule.init(5000)).vector
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    exact = spec in ("mean", "median", "trimmed_mean(f=2)", "meamed(f=2)")
    slow = rule.apply(rows, weights, rule.init(5000)).vector
    torch.testing.assert_close(fast, slow, rtol=0.0 if exact else 1e-6, atol=0.0 if exact else 1e-7)


@pytest.mark.skipif(kernels.compiled() is None, reason="numba is not installed")
@pytest.mark.parametrize("n", [2, 5, 10, 11])
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_kernels_in_registers_equal_the_others_to_the_last_bit(n, monkeypatch):
    registers = importlib.import_module("lightning_async.aggregation.registers")
    rows, weights = rows_with_ties(n, 20011)
    expected = results(rows, weights)
    monkeypatch.setattr(registers, "WORTHWHILE", 1)
    for shift in (0, 1, 7, 16):
        room = np.empty(20011 + shift, np.float32)
        done = kernels._in_registers(rows, 0, 1, room[shift:])
        assert done.stop - done.start >= 20011 - 31
        assert (room[shift + done.start :].__array_interface__["data"][0]) % 64 == 0
    for a, c in zip(expected, results(rows, weights), strict=True):
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("n", [1, 2, 5, 10, 11])
@pytest.mark.parametrize("b", LENGTHS)
def test_gram_is_exact_to_float64(n, b, fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(kernels, "compiled", lambda: None)
    x = np.random.default_rng(b).normal(size=(n, b)).astype(np.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(kernels.gram(list(x)), wide @ wide.T, rtol=1e-12, atol=1e-10)


def parts_kept(column, low, high):
    """By the definition: the share of each row's weight that enters; ties at an edge share what is kept of them."""
    order = sorted(range(len(column)), key=lambda i: column[i])
    ranks = {value: [r for r, i in enumerate(order) if column[i] == value] for value in column}
    return [sum(low <= r < high for r in ranks[value]) / len(ranks[value]) for value in column]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("low", "high"), [(2, 7), (0, 9), (4, 5), (0, 1), (3, 9)])
def test_weighted_values_that_tie_at_an_edge_share_what_is_kept(fast, low, high, monkeypatch):
    if not fast:
        monkeypatch.setattr(kernels, "compiled", lambda: None)
    rows, weights = rows_with_ties(9, 500)
    out, expected = np.empty(500, np.float32), []
    kernels.middle(rows, weights, low, high, out)
    for column in np.stack(rows, axis=1).astype(np.float64):
        shares = np.array(parts_kept(column, low, high)) * weights
        expected.append((shares * column).sum() / shares.sum())
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    again = np.empty(500, np.float32)
    kernels.middle(rows[::-1], weights[::-1], low, high, again)
    np.testing.assert_allclose(again, out, rtol=1e-5, atol=1e-6)


def test_numba_is_loaded_by_the_first_call_and_not_before():
    program = (
        "import sys, lightning_async.aggregation as a; assert 'numba' not in sys.modules; print(len(a.AGGREGATORS))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout
