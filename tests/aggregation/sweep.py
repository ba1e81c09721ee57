"""Points that asynchronous training on digits loses to attacks: every rule, attack, split and seed, as a table.

    python tests/aggregation/sweep.py --out sweep.jsonl
    python tests/aggregation/sweep.py --rules "multi_krum(f=2)" --attacks "alie()" --splits iid --quorums 8 all

Lost is accuracy on the test set, compared with the mean over the nine honest workers with the same seed (of the shares
and of the batches), split and length, whose quorum is smaller by the two who are not there. What counts is the median
over the seeds. `--out FILE` keeps the runs, and what is in it is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Any

import torch
from fleet import F, Fleet

from examples.experiments.attackers import attackers
from examples.experiments.kept import Kept

SPLITS = {"iid": None, "dirichlet": 0.3}
QUORUM: int | str = "all"
VERSIONS = 60
ATTACKS = attackers(10)
FAMILIES = {
    "coordinate": "pipeline(nnm(f=2), trimmed_mean(f=2))",
    "selection": "pipeline(nnm(f=2), mda(f=2))",
    "centre": "pipeline(nnm(f=2), geometric_median)",
}


def reach(rule: str, how: str | None, split: str, quorum: int | str, versions: int, seed: int) -> dict[str, Any]:
    """The accuracy of one run; without an attack, of the honest workers alone."""
    given = quorum if how or quorum == "all" else int(quorum) - F
    made = Fleet(rule, how, SPLITS[split], seed, quorum=given).run(versions)
    return {"accuracy": made.accuracy(), "scores": {w.name: round(made.score(w), 2) for w in made.workers}}


def table(found: dict[tuple[str, ...], list[float]], rules: list[str]) -> str:
    """A row for each split, quorum and attack; the median over the seeds, and all of them."""
    lines = ["| split | quorum | attack | " + " | ".join(rules) + " |", "|---|---|---|" + "---|" * len(rules)]
    for head in dict.fromkeys(key[:3] for key in found):
        lost = [found[(*head, rule)] for rule in rules]
        told = [f"**{statistics.median(one):.1f}** ({', '.join(f'{x:.1f}' for x in one)})" for one in lost]
        lines.append(f"| {' | '.join(head)} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", default=list(FAMILIES.values()))
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS))
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=list(SPLITS))
    parser.add_argument("--quorums", nargs="+", default=[QUORUM], help="numbers or `all`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--versions", type=int, default=VERSIONS)
    parser.add_argument("--out", type=Path, help="file that keeps the runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = Kept(args.out)

    def accuracy(rule: str, how: str | None, split: str, quorum: str, seed: int) -> float:
        setting = {"split": split, "quorum": quorum, "versions": args.versions, "seed": seed}
        key = {"rule": rule, "how": how, **setting, "quorum": quorum if quorum == "all" else int(quorum)}
        return float(kept.row(key, lambda: reach(**key))["accuracy"])

    found: dict[tuple[str, ...], list[float]] = {}
    for split, how, rule in itertools.product(args.splits, args.attacks, args.rules):
        for quorum in args.quorums:
            found[split, quorum, how, rule] = [
                100 * (accuracy("mean", None, split, quorum, seed) - accuracy(rule, how, split, quorum, seed))
                for seed in range(args.seeds)
            ]
    print(table(found, args.rules))


if __name__ == "__main__":
    main()
