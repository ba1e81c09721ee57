"""What `make demo` runs: a nano GPT-2, three workers of unequal speed, one embedded server, a few minutes on two cores.

At the end: validation loss before and after, tokens per second and bytes of each worker as the server and the sockets
counted them, how stale the updates were, and a PNG of all loss curves. While it runs a second terminal can join.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from examples.gpt2 import record, train
from examples.gpt2.module import SIZES

SPEEDS = [2.0, 1.0, 0.3]
WIDTH = 40  # characters of the longest bar


def table(workers: Mapping[str, Mapping[str, Any]], block: int) -> list[str]:
    """One line per worker of a report: what it did and what crossed its socket."""
    lines = [f"{'worker':<24}{'steps':>7}{'tokens/s':>10}{'updates':>9}{'refused':>9}{'up':>10}{'down':>10}"]
    for name, seen in sorted(workers.items(), key=lambda item: (item[1]["group"], item[1]["rank"])):
        rate = seen["samples"] * block / seen["seconds"] if seen["seconds"] else 0.0
        refused = sum(seen["refused"].values())
        up, down = (f"{seen[key] / 1e6:.1f} MB" for key in ("sent_bytes", "received_bytes"))
        lines.append(f"{name:<24}{seen['steps']:>7}{rate:>10.0f}{seen['accepted']:>9}{refused:>9}{up:>10}{down:>10}")
    return lines


def histogram(counts: Mapping[str, int]) -> list[str]:
    """One bar per staleness, in versions."""
    longest = max(counts.values(), default=1)
    ordered = sorted((int(staleness), count) for staleness, count in counts.items())
    return [f"{s:>4} {'#' * max(1, round(WIDTH * n / longest))} {n}" for s, n in ordered]


def summary(outcome: train.Outcome, block: int, curves: Path) -> Iterable[str]:
    """Everything that the demo says at its end, line by line."""
    report = outcome.report
    yield f"validation loss (nats per token): {outcome.before:.4f} before, {outcome.after:.4f} after"
    yield f"version {report['version']} after {report['uptime_s']:.0f} s; {report['steps']} local steps accepted"
    yield ""
    yield from table(report["workers"], block)
    yield ""
    yield "staleness of the accepted updates, in versions"
    yield from histogram(report["staleness"])
    yield ""
    yield f"loss curves: {curves}"


def clear(folder: Path) -> None:
    """Remove what an earlier demo left; a folder that holds anything else is the user's and stays as it is."""
    for pattern in ("worker-*.csv", "loss.png"):
        for path in folder.glob(pattern):
            path.unlink()


def main() -> None:
    parser = train.parser()
    parser.set_defaults(speeds=SPEEDS, minutes=3.5, out=Path("runs/demo"))
    args = parser.parse_args()
    train.quiet()
    if "LOCAL_RANK" not in os.environ:
        clear(args.out)
        print(f"GPT-2 {args.size}, workers of speed {args.speeds}, about {args.minutes} minutes", flush=True)
    outcome = train.fit(args)
    if outcome is not None:
        picture = args.out / "loss.png"
        record.plot(record.read(args.out / "curves"), picture, f"GPT-2 {args.size}, workers of speed {args.speeds}")
        print("\n" + "\n".join(summary(outcome, SIZES[args.size].block, picture)))


if __name__ == "__main__":
    main()
