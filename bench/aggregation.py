"""Aggregators against the machine's read bandwidth, its BLAS, and torch.sort; paired in one run, on one thread.

`python -m bench.aggregation` prints one JSON object per line. Times are CPU time of this thread, best of some rounds in
which every contestant takes its turn; a busy neighbour then shows in both of a pair. A turn is `TURN_S` or one run: a
result of 40 MB lies in fresh pages, and where another program has just taken the warm ones, a virtual machine's cost
three times as much as the step itself (docs/log.md), which one run in three may meet. `floor` is what `ratio` must be,
at least, or at most where `lower` is true. d = 10^7, n = 10 unless said: 400 MB, more than a cache holds. Where byzfl,
a public library of such rules, is installed (nothing requires it), its time for the same rows stands beside ours.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import tracemalloc
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_async.aggregation import aggregator
from lightning_async.aggregation.blocks import BLOCK
from lightning_async.sparse import Sparse

N, D, ROUNDS = 10, 10_000_000, 4
TURN_S = 0.15
MEMORY_BOUND = ("mean", "trimmed_mean(f=2)", "median", "meamed(f=2)")
GRAM_BOUND = (
    "krum(f=2)",
    "multi_krum(f=2)",
    "geometric_median",
    "pipeline(nnm(f=2), mean)",
    "centered_clipping(tau=10.0)",
)
SORTED = ("trimmed_mean(f=2)", "median")
AGEING = ("trimmed_mean(f=2)", "median", "meamed(f=2)")
BYZFL = {
    "trimmed_mean(f=2)": ("TrMean", {"f": 2}),
    "median": ("Median", {}),
    "meamed(f=2)": ("Meamed", {"f": 2}),
    "krum(f=2)": ("Krum", {"f": 2}),
    "geometric_median": ("GeometricMedian", {}),
    "pipeline(nnm(f=2), mean)": ("NNM", {"f": 2}),
}


def rows() -> Iterator[dict[str, Any]]:
    """Every measurement, as one dictionary each."""
    torch.set_num_threads(1)
    yield from bandwidth()
    yield from weighted()
    yield from products()
    yield from against_sort(10, D, 50.0)
    yield from against_sort(50, 1_000_000, 10.0)
    yield from against_byzfl(10, 1_000_000)
    yield from memory()
    yield from sparse()


def bandwidth() -> Iterator[dict[str, Any]]:
    """Memory-bound rules against one reading pass (max) over the same rows."""
    data = updates(N, D)
    times = paired({"read": lambda: [row.max() for row in data]} | {spec: step(spec, data) for spec in MEMORY_BOUND})
    for spec in MEMORY_BOUND:
        yield row(f"aggregation {spec} n=10 d=1e7", times[spec], times["read"], "reference/ours", 0.7)


def weighted() -> Iterator[dict[str, Any]]:
    """The same rules with a weight for each row, as staleness gives them, against themselves without."""
    data, weights = updates(N, D), [0.5 + 0.05 * i for i in range(N)]
    rules = {spec: aggregator(spec) for spec in AGEING}
    plain = {spec: step(spec, data) for spec in AGEING}
    heavy = {f"weighted {spec}": lambda rule=rule: rule.apply(data, weights, {}) for spec, rule in rules.items()}
    times = paired(plain | heavy)
    for spec in AGEING:
        name = f"aggregation weighted {spec} n=10 d=1e7 to unweighted"
        yield row(name, times[f"weighted {spec}"], times[spec], "ours/reference", 1.5)


def products() -> Iterator[dict[str, Any]]:
    """Distance rules against X @ X.T by the BLAS, in float32, on rows that are stacked beforehand."""
    data = updates(N, D)
    stacked = torch.stack(data)
    specs = (*GRAM_BOUND, "bulyan(f=1)", "krum(f=1)", "trimmed_mean(f=1)", "pipeline(nnm(f=2), trimmed_mean(f=2))")
    times = paired({"gram": lambda: stacked @ stacked.T} | {spec: step(spec, data) for spec in specs})
    for spec in GRAM_BOUND:
        yield row(f"aggregation {spec} n=10 d=1e7 to BLAS Gram", times[spec], times["gram"], "ours/reference", 1.3)
    both = times["krum(f=1)"] + times["trimmed_mean(f=1)"]
    yield row("aggregation bulyan(f=1) to krum + trimmed_mean", times["bulyan(f=1)"], both, "ours/reference", 1.1)
    chain = "pipeline(nnm(f=2), trimmed_mean(f=2))"
    yield row(f"aggregation {chain} to BLAS Gram", times[chain], times["gram"], "ours/reference", None)


def against_sort(n: int, d: int, floor: float) -> Iterator[dict[str, Any]]:
    """Coordinate-wise rules against the trimmed mean by torch.sort, from the same list of rows, as libraries do it."""
    data = updates(n, d)
    times = paired(
        {"sort": lambda: torch.stack(data).sort(0).values[2:-2].mean(0)} | {s: step(s, data) for s in SORTED}, rounds=3
    )
    for spec in SORTED:
        yield row(
            f"aggregation {spec} n={n} d={d:.0e} to torch.sort", times[spec], times["sort"], "reference/ours", floor
        )


def against_byzfl(n: int, d: int) -> Iterator[dict[str, Any]]:
    """Whole rules against byzfl's from the same list of rows; nothing where it is not installed."""
    sys.modules.setdefault("byzfl.benchmark", types.ModuleType("byzfl.benchmark"))  # needs torchvision; not measured
    try:
        byzfl = importlib.import_module("byzfl")
    except ImportError:
        return
    data = updates(n, d)
    theirs = {f"byzfl {spec}": _bound(getattr(byzfl, name)(**given), data) for spec, (name, given) in BYZFL.items()}
    times = paired(theirs | {spec: step(spec, data) for spec in BYZFL}, rounds=2)
    for spec in BYZFL:
        yield row(
            f"aggregation {spec} n={n} d={d:.0e} to byzfl", times[spec], times[f"byzfl {spec}"], "reference/ours", None
        )


def _bound(rule: Callable[[Any], object], data: Any) -> Callable[[], object]:
    return lambda: rule(data)


def memory() -> Iterator[dict[str, Any]]:
    """Peak extra memory of a step against n x block + 2 x d."""
    data = updates(N, D // 4)
    allowed = N * 4 * 2 * BLOCK + 2 * 4 * (D // 4)
    for spec in ("krum(f=2)", "trimmed_mean(f=2)", "pipeline(nnm(f=2), trimmed_mean(f=2))"):
        act = step(spec, data)
        act()
        tracemalloc.start()
        act()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        yield row(f"aggregation {spec} peak extra memory", peak / 1e6, allowed / 1e6, "ours/reference", 1.0, unit="MB")


def sparse() -> Iterator[dict[str, Any]]:
    """Top-k 1 % of GPT-2's 1.24e8 coordinates from 11 workers, and a quarter of that: the time per non-zero."""
    for spec in ("krum(f=2)", "pipeline(nnm(f=2), trimmed_mean(f=2))"):
        costs = []
        for share in (0.01, 0.0025):
            data = sparse_updates(11, 124_439_808, share)
            stored = sum(part.indices.numel() for part in data)
            costs.append((best(step(spec, data), 2) * 1e3, stored))
        (full, many), (quarter, few) = costs
        name = f"aggregation {spec} sparse n=11 d=1.24e8: {many} against {few} non-zeros"
        yield row(name, full, quarter * many / few, "ours/reference", 1.3)


def updates(n: int, d: int) -> list[Tensor]:
    return [torch.randn(d, generator=torch.Generator().manual_seed(i)) for i in range(n)]


def sparse_updates(n: int, d: int, share: float) -> list[Sparse]:
    made = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        indices = np.unique(rng.integers(0, d, int(d * share)))
        values = rng.standard_normal(len(indices), dtype=np.float32)
        made.append(Sparse(torch.from_numpy(indices), torch.from_numpy(values), d))
    return made


def step(spec: str, data: Any) -> Callable[[], object]:
    """One whole `apply` of the rule, as the server does it."""
    rule = aggregator(spec)
    size = data[0].size if isinstance(data[0], Sparse) else data[0].numel()
    state, weights = rule.init(size), [1.0] * len(data)
    return lambda: rule.apply(data, weights, state)


def paired(contestants: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Best time of each in ms, over rounds in which each has a turn."""
    found = {name: best(run, 1) for name, run in contestants.items()}
    for _ in range(rounds):
        for name, run in contestants.items():
            times = max(1, int(TURN_S / found[name]))
            found[name] = min(found[name], best(run, times))
    return {name: seconds * 1e3 for name, seconds in found.items()}


def best(run: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        start = time.thread_time()
        run()
        found.append(time.thread_time() - start)
    return min(found)


def row(name: str, ours: float, reference: float, kind: str, floor: float | None, unit: str = "ms") -> dict[str, Any]:
    """`kind` says which of the two is divided by which; a ratio above 1 of "ours/reference" is slower or larger."""
    lower = kind == "ours/reference"
    ratio = ours / reference if lower else reference / ours
    return {
        "bench": name,
        "ours": round(ours, 2),
        "reference": round(reference, 2),
        "floor": floor,
        "unit": unit,
        "ratio": round(ratio, 3),
        "lower": lower,
    }


if __name__ == "__main__":
    for measurement in rows():
        print(json.dumps(measurement), flush=True)
