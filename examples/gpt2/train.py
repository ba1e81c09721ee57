"""Train GPT-2 with any number of workers, equal or not: `python -m examples.gpt2.train --speeds 2.0 1.0 0.3`.

Lightning starts local worker i by running this script again with the same arguments and LOCAL_RANK=i, so everything
here runs once in each worker. With `--server tcp://host:port` the script joins a run that is already going on.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor
from torch.utils.data import DataLoader

from examples.gpt2.data import TextData
from examples.gpt2.invitation import Invitation
from examples.gpt2.module import GPT2, SIZES
from examples.gpt2.record import Recorder
from examples.gpt2.throttle import Throttle, unit_for


@dataclass(frozen=True)
class Run:
    """What one training needs; the same objects in every worker."""

    trainer: Trainer
    module: GPT2
    data: TextData


@dataclass(frozen=True)
class Outcome:
    """What came of a training: validation loss in nats per token before and after, this process's optimizer steps,
    and the server's report (empty for plain Lightning)."""

    before: float
    after: float
    steps: int
    report: dict[str, Any]


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = options.add_argument_group("model and data")
    model.add_argument("--size", choices=SIZES, default="nano", help="nano 1.1M, small 124M, medium 355M parameters")
    model.add_argument("--lr", type=float, help="learning rate of AdamW; default: what suits the size")
    model.add_argument("--warmup-steps", type=int, default=20, help="steps over which the learning rate rises")
    model.add_argument("--batch-size", type=int, default=8, help="blocks per step of one worker")
    model.add_argument("--text", help="folder with text files; default: the standard library's source")
    model.add_argument("--pattern", default="*.py", help="which files of that folder")
    model.add_argument("--data-dir", help="where tokenizer and token arrays are kept; default: the user's cache")
    model.add_argument("--seed", type=int, default=0)
    workers = options.add_argument_group("workers")
    workers.add_argument(
        "--speeds", type=float, nargs="+", help="relative speed of each local worker; sleeps to reach it"
    )
    workers.add_argument("--unit", type=float, help="seconds of a step at speed 1.0; default: measured")
    workers.add_argument("--devices", type=int, help="local workers; default: one for each speed, else one")
    workers.add_argument("--accelerator", default="cpu")
    workers.add_argument("--precision", default="32-true")
    workers.add_argument("--plain", action="store_true", help="plain Lightning on one device, to compare with")
    shared = options.add_argument_group("the run that the workers share")
    shared.add_argument("--server", help="tcp://host:port of a run to join; default: a server of our own")
    shared.add_argument("--local-steps", type=int, help="optimizer steps between two submissions")
    for name in ("submit", "compression", "aggregation", "outer", "staleness", "weight", "quorum"):
        shared.add_argument(f"--{name}", help="see AsyncWANStrategy")
    length = options.add_argument_group("length and output")
    length.add_argument(
        "--minutes", type=float, help="how long to train; with --speeds, as many steps as they make in it"
    )
    length.add_argument("--total-steps", type=int, help="end for everybody after so many local steps were accepted")
    length.add_argument("--val-every", type=int, default=100, help="steps of rank 0 between validations")
    length.add_argument("--out", type=Path, default=Path("runs/gpt2"), help="loss curves and logs")
    return options


def build(args: argparse.Namespace) -> Run:
    """Model, data and trainer for these arguments. Measures the unit of time when speeds are given without one."""
    seed_everything(args.seed, verbose=False)
    size = SIZES[args.size]
    module = GPT2(args.size, lr=args.lr, warmup_steps=args.warmup_steps)
    data = TextData(size.tokens, size.block, args.batch_size, args.text, args.pattern, args.data_dir)
    callbacks: list[Callback] = [
        Recorder(args.out / "curves", name=_curve_name(args)),
        _bar(),
    ]
    if args.speeds:
        throttle = Throttle(args.speeds, args.unit or unit_for(module, _first_batch(data), args.speeds))
        callbacks.append(throttle)
        args.total_steps = args.total_steps or _steps(args, throttle)
    if not args.plain and not args.server:
        callbacks.append(Invitation(args))
    return Run(Trainer(**_trainer_arguments(args), callbacks=callbacks), module, data)


def _first_batch(data: TextData) -> Tensor:
    data.setup()
    assert data.train is not None
    return torch.stack([data.train[index] for index in range(data.batch_size)])


def _steps(args: argparse.Namespace, throttle: Throttle) -> int | None:
    """The steps that all local workers together make in the given time; with them the run ends for everybody."""
    if args.minutes is None or args.server is not None:
        return None
    per_second = sum(1 / throttle.period_s(rank) for rank in range(_workers(args)))
    return int(60 * args.minutes * per_second)


def _workers(args: argparse.Namespace) -> int:
    """Local workers that these arguments ask for."""
    return 1 if args.plain else args.devices or len(args.speeds or [1])


def _bar() -> TQDMProgressBar:
    """A live bar in a terminal, a line now and then in a log file."""
    return TQDMProgressBar(refresh_rate=1 if sys.stderr.isatty() else 50)


def _curve_name(args: argparse.Namespace) -> str:
    return f"joined-{os.getpid()}" if args.server else ""


def _trainer_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Rank 0 validates; the others only train."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    arguments: dict[str, Any] = {
        "accelerator": args.accelerator,
        "devices": _workers(args),
        "precision": args.precision,
        "default_root_dir": args.out,
        "max_epochs": -1,
        "max_steps": args.total_steps if args.plain and args.total_steps else -1,
        "max_time": {"seconds": args.minutes * 60} if args.minutes and not args.total_steps else None,
        "check_val_every_n_epoch": None,
        "val_check_interval": args.val_every,
        "limit_train_batches": _share(args, rank),
        "limit_val_batches": None if rank == 0 else 0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 10,
        "enable_checkpointing": False,
        "logger": False,
        "enable_model_summary": False,
    }
    return arguments if args.plain else {**arguments, "strategy": _strategy(args)}


def _share(args: argparse.Namespace, rank: int) -> int | None:
    """An epoch, and so the progress bar, is what this worker will do of the run, where speeds and length say it."""
    if not args.speeds or not args.total_steps:
        return None
    speeds = args.speeds[: _workers(args)]
    return math.ceil(args.total_steps * speeds[rank] / sum(speeds))


def _strategy(args: argparse.Namespace) -> Any:
    """AsyncWANStrategy with those of its arguments that were given; it has good values for the others."""
    from lightning_async import AsyncWANStrategy

    names = (
        "server",
        "submit",
        "local_steps",
        "compression",
        "aggregation",
        "outer",
        "staleness",
        "weight",
        "total_steps",
    )
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.quorum is not None:
        given["quorum"] = args.quorum if args.quorum == "all" else int(args.quorum)
    return AsyncWANStrategy(**given)


@torch.no_grad()
def evaluate(module: GPT2, batches: DataLoader[Tensor]) -> float:
    """Mean loss in nats per token over all validation blocks; leaves the module in train mode."""
    module.eval()
    losses = [(module.loss(batch).item(), len(batch)) for batch in batches]
    module.train()
    return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)


def fit(args: argparse.Namespace) -> Outcome | None:
    """Train; on the process that was started by hand the outcome, also as `outcome.json`, in its children None."""
    first = "LOCAL_RANK" not in os.environ
    run = build(args)
    before = math.nan
    if first:
        run.data.setup()
        before = evaluate(run.module, run.data.val_dataloader())
    run.trainer.fit(run.module, datamodule=run.data)
    if not first:
        return None
    after = evaluate(run.module, run.data.val_dataloader())
    report = {} if args.plain else run.trainer.strategy.report()
    outcome = Outcome(before, after, run.trainer.global_step, report)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "outcome.json").write_text(json.dumps(asdict(outcome), indent=1))
    return outcome


def quiet() -> None:
    """Keep Lightning's remarks about the machine, and one about its own use of torch, out of the output."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")


def main() -> None:
    quiet()
    args = parser().parse_args()
    if args.minutes is None and args.total_steps is None and args.server is None:
        raise SystemExit("say how long: give --minutes or --total-steps")
    outcome = fit(args)
    if outcome is not None:
        print(f"validation loss: {outcome.before:.4f} before, {outcome.after:.4f} after")


if __name__ == "__main__":
    main()
