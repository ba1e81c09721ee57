"""What every aggregator promises, over the whole table. A new rule is tested by its row in CASES."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_async.aggregation import AGGREGATORS, FILTERS, PREPROCESSING, aggregator
from lightning_async.aggregation import blocks as blocks_module
from lightning_async.aggregation.blocks import gram
from lightning_async.aggregation.stream import combine
from lightning_async.errors import ConfigError
from lightning_async.sparse import Sparse

N, F, D = 11, 2, 700


@dataclass(frozen=True)
class Case:
    """A spec that holds for n = 11, f = 2, and which symmetries the rule has by its definition."""

    spec: str
    moves: bool = True
    scales: bool = True
    permutes: bool = True
    kappa: float = 60.0


# kappa: |A - mean(S)|^2 <= kappa * mean_S |x_i - mean(S)|^2 for every honest S (Allouah et al. 2023, table 1), with
# g = 1 + f / (n - 2f); rules that are not in that table keep the loose default.
G = 1 + F / (N - 2 * F)
CASES = {
    "mean": [Case("mean")],
    "median": [Case("median", kappa=4 * G**2)],
    "trimmed_mean": [Case(f"trimmed_mean(f={F})", kappa=6 * F / (N - 2 * F) * G)],
    "meamed": [Case(f"meamed(f={F})")],
    "krum": [Case(f"krum(f={F})", kappa=6 * G)],
    "multi_krum": [Case(f"multi_krum(f={F})", kappa=6 * G), Case(f"multi_krum(f={F}, m=3)", kappa=6 * G)],
    "bulyan": [Case(f"bulyan(f={F})")],
    "mda": [Case(f"mda(f={F})")],
    "monna": [Case(f"monna(f={F})"), Case(f"monna(f={F}, pivot=0)", permutes=False)],
    "geometric_median": [Case("geometric_median", kappa=4 * G**2)],
    "centered_clipping": [Case("centered_clipping(tau=100.0)", moves=False, scales=False)],
    "pipeline": [
        Case(f"pipeline(nnm(f={F}), trimmed_mean(f={F}))", kappa=6 * F / (N - 2 * F) * G),
        Case(f"pipeline(nnm(f={F}), krum(f={F}))", kappa=6 * G),
        Case(f"pipeline(nnm(f={F}), bulyan(f={F}))"),
        Case(f"pipeline(arc(f={F}), nnm(f={F}), median)", moves=False),
        Case(f"pipeline(clip_to_median_norm, trimmed_mean(f={F}))", moves=False),
        Case("pipeline(clip_norm(c=1000.0), geometric_median)", moves=False, scales=False),
        Case(f"pipeline(bucketing(s=2), trimmed_mean(f={F}))", permutes=False),
        Case(f"pipeline(nnm(f={F}), centered_clipping(tau=100.0))", moves=False, scales=False),
    ],
}
EVERY = [pytest.param(case, id=case.spec) for row in CASES.values() for case in row]
ROBUST = [param for param in EVERY if aggregator(param.values[0].spec).robust]


def rows_of(seed: int, n: int = N, d: int = D) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(d, generator=generator) + 0.5 for _ in range(n)]


def sparse_rows(seed: int) -> list[Sparse]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(N):
        indices = torch.randperm(D, generator=generator)[: D // 4].sort().values
        made.append(Sparse(indices, torch.randn(D // 4, generator=generator), D))
    return made


def dense(row: Sparse) -> torch.Tensor:
    return torch.zeros(row.size).index_copy_(0, row.indices, row.values)


def run(case: Case, rows: list, weights: list[float] | None = None) -> torch.Tensor:
    rule = aggregator(case.spec)
    return rule.apply(rows, weights or [1.0] * len(rows), rule.init(D)).vector


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


def test_every_row_of_the_table_has_a_case():
    assert set(CASES) == set(AGGREGATORS)
    used = " ".join(case.spec for case in CASES["pipeline"])
    assert all(name in used for name in PREPROCESSING)


@pytest.mark.parametrize("case", EVERY)
def test_spec_parses_to_an_equal_object(case):
    rule = aggregator(case.spec)
    assert aggregator(rule.spec) == rule
    assert aggregator(rule) is rule


@pytest.mark.parametrize("case", EVERY)
def test_order_of_workers_does_not_matter(case):
    if not case.permutes:
        pytest.skip("reads rows by their position, as documented")
    rows, order = rows_of(1), torch.randperm(N, generator=torch.Generator().manual_seed(2)).tolist()
    weights = [0.5 + i / N for i in range(N)]
    close(run(case, rows), run(case, [rows[i] for i in order]))
    close(run(case, rows, weights), run(case, [rows[i] for i in order], [weights[i] for i in order]))


@pytest.mark.parametrize("case", EVERY)
def test_a_common_shift_shifts_the_result(case):
    if not case.moves:
        pytest.skip("clips around a fixed point")
    rows, shift = rows_of(3), rows_of(4)[0] * 3
    close(run(case, rows) + shift, run(case, [row + shift for row in rows]), atol=1e-5)


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.parametrize("factor", [2.0**-13, 8.0, 2.0**13])
def test_a_common_scale_scales_the_result(case, factor):
    if not case.scales:
        pytest.skip("has a length in its arguments")
    rows = rows_of(5)
    close(run(case, rows), run(case, [row * factor for row in rows]) / factor, atol=1e-5)


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.parametrize("weights", [None, [0.2 + 0.1 * i for i in range(N)]])
def test_dense_sparse_and_mixed_rows_agree(case, weights):
    sparse = sparse_rows(6)
    full = [dense(row) for row in sparse]
    mixed = [row if i % 2 else full[i] for i, row in enumerate(sparse)]
    close(run(case, full, weights), run(case, sparse, weights))
    close(run(case, full, weights), run(case, mixed, weights))


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.parametrize("make", [rows_of, sparse_rows])
def test_the_size_of_a_block_does_not_matter(case, make, monkeypatch):
    rows = make(7)
    whole = run(case, rows)
    monkeypatch.setattr(blocks_module, "BLOCK", 64)
    close(whole, run(case, rows))


@pytest.mark.parametrize("case", EVERY)
def test_shards_add_their_gram_matrices_and_agree(case):
    rule, rows = aggregator(case.spec), rows_of(8)
    state = rule.init(D)
    seen = [*rows, state["previous"]] if "previous" in state else rows
    parts = [[row[cut].contiguous() for row in seen] for cut in (slice(0, 300), slice(300, D))]
    plan = rule.plan(sum(gram(part) for part in parts), [1.0] * N, state)
    close(run(case, rows), torch.cat([combine(part, plan, rule.end)[0] for part in parts]))


@pytest.mark.parametrize("case", EVERY)
def test_identical_updates_return_that_update(case):
    row = rows_of(9)[0]
    rows = [row.clone() for _ in range(N)]
    close(run(case, rows), row)
    close(run(case, rows, [1.0 + i for i in range(N)]), row)


def byzantine(honest: torch.Tensor, how: str) -> torch.Tensor:
    centre, spread = honest.mean(0), honest.std(0)
    return {
        "far": torch.full((F, D), 1e6),
        "astronomic": torch.full((F, D), 1e30),
        "opposite": -10 * centre.expand(F, D),
        "little": (centre - 1.2 * spread).expand(F, D),
        "inner": -0.5 * centre.expand(F, D),
        "zero": torch.zeros(F, D),
        "copies": honest[:1].expand(F, D),
        "apart": torch.stack([centre + 1e3, centre - 1e3]),
    }[how]


def leaves_the_ball(spec: str, kappa: float, how: str, seed: int) -> bool:
    """Whether f attackers bring the aggregate further from the honest mean than kappa x the honest variance."""
    honest = torch.stack(rows_of(seed, n=N - F))
    rows = [row.contiguous() for row in torch.cat([byzantine(honest, how), honest])]
    trusted_first = rows[F:] + rows[:F]
    rule = aggregator(spec)
    state = rule.init(D)
    if "previous" in state:
        state["previous"] = honest.mean(0)
    vector = rule.apply(trusted_first, [1.0] * N, state).vector.double()
    centre = honest.double().mean(0)
    variance = (honest.double() - centre).square().sum(1).mean()
    return not bool((vector - centre).square().sum() <= kappa * variance)


ATTACKS = ["far", "astronomic", "opposite", "little", "inner", "zero", "copies", "apart"]


@pytest.mark.parametrize("case", ROBUST)
@pytest.mark.parametrize("how", ATTACKS)
def test_f_attackers_cannot_leave_the_honest_ball(case, how):
    assert not any(leaves_the_ball(case.spec, case.kappa, how, seed) for seed in range(5))


def test_the_mean_does_leave_it():
    assert all(leaves_the_ball("mean", 60.0, how, 0) for how in ("far", "astronomic"))


@pytest.mark.parametrize("case", EVERY)
def test_too_few_updates_are_refused_with_the_number_that_would_do(case):
    rule = aggregator(case.spec)
    rule.check(rule.smallest)
    rule.apply(rows_of(1, n=rule.smallest), [1.0] * rule.smallest, rule.init(D))
    if rule.smallest > 1:
        few = rule.smallest - 1
        with pytest.raises(ConfigError, match=f"got {few} updates.*at least {rule.smallest} updates"):
            rule.apply(rows_of(1, n=few), [1.0] * few, rule.init(D))
        with pytest.raises(ConfigError, match="set the quorum to"):
            rule.check(few)


@pytest.mark.parametrize("case", EVERY)
def test_inputs_are_read_only_and_results_repeat(case):
    rule, rows = aggregator(case.spec), rows_of(10)
    copies, state = [row.clone() for row in rows], rule.init(D)
    kept = {key: value.clone() for key, value in state.items()}
    weights = [0.5 + i for i in range(N)]
    first, second = rule.apply(rows, weights, state), rule.apply(rows, weights, state)
    assert torch.equal(first.vector, second.vector)
    assert all(torch.equal(a, b) for a, b in zip(rows, copies, strict=True))
    assert all(torch.equal(state[key], kept[key]) for key in kept)
    assert set(first.state) == set(state)
    assert weights == [0.5 + i for i in range(N)]


@pytest.mark.parametrize("case", EVERY)
def test_influence_is_relative_and_an_outlier_has_less(case):
    rule, rows = aggregator(case.spec), rows_of(11)
    rows[4] = torch.full((D,), 500.0)
    influence = rule.apply(rows, [1.0] * N, rule.init(D)).influence
    assert len(influence) == N
    assert all(0.0 <= share <= 1.0 for share in influence)
    assert max(influence) == 1.0
    if rule.robust and "bucketing" not in case.spec and "clip" not in case.spec:
        assert influence[4] < 0.2


@pytest.mark.parametrize("case", EVERY)
def test_calling_directly_takes_a_matrix(case):
    updates = torch.stack(rows_of(12))
    result = aggregator(case.spec)(updates)
    assert result.shape == (D,)
    assert result.dtype == torch.float32
    assert torch.equal(result, run(case, list(updates)))


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_only_ratios_of_weights_matter(case, scale):
    rows, weights = rows_of(13), np.linspace(0.1, 1.0, N)
    close(run(case, rows, weights.tolist()), run(case, rows, (scale * weights).tolist()))
    assert torch.equal(run(case, rows), run(case, rows, [scale] * N))


def test_the_docs_have_a_row_for_every_member():
    text = (Path(__file__).parents[2] / "docs" / "aggregation.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\w+)\(", text, flags=re.MULTILINE)
    assert sorted(documented) == sorted([*AGGREGATORS, *FILTERS, *PREPROCESSING])


def test_the_docs_table_of_f_is_what_the_rules_say():
    text = (Path(__file__).parents[2] / "docs" / "aggregation.md").read_text(encoding="utf-8")
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    head = next(i for i, line in enumerate(lines) if line[0] == "n")
    for names, *numbers in lines[head + 2 : head + 5]:
        for name in names.split(", "):
            prepares = name in PREPROCESSING
            for n, f in zip(lines[head][1:], numbers, strict=True):
                fits = [
                    aggregator(f"pipeline({name}(f={g}), mean)" if prepares else f"{name}(f={g})") for g in range(12)
                ]
                assert max(g for g, rule in enumerate(fits) if rule.smallest <= int(n)) == int(f)
