"""`lightning-async replay DIR`: a run's journal through the real coordinator again, verified, or under other rules.

What a what-if is not stands in docs/durability.md: its updates were computed from the parameters of the recorded run.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_async.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_async.server.coordinator import Coordinator
    from lightning_async.server.history import Tale, Told

AT_ONCE = 1 << 20
CHANGES = ("aggregation", "staleness", "weight", "outer", "quorum")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", type=Path, metavar="DIR", help="the state_dir of a run that was served --keep-journal")
    parser.add_argument("--until", type=int, metavar="VERSION", help="stop at this version of the recorded run")
    parser.add_argument(
        "--without", action="append", default=[], metavar="WORKER", help="leave this worker's updates out"
    )
    for name in CHANGES:
        parser.add_argument(f"--{name}", metavar="TEXT", help=f"what if the run had had this {name}")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="a checkpoint: say how far the result is from it")
    parser.add_argument(
        "--loss", metavar="TEXT", help='"module:function" of {name: tensor}: the loss on a validation set of yours'
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result: a .safetensors or a .ckpt")
    parser.add_argument("--validation", metavar="TEXT", help='"module:function", where the run needs one')


def run(args: argparse.Namespace) -> int:
    from lightning_async.cli.owner import private_of
    from lightning_async.server.history import Tale, tell, tensors_of

    changes = {name: _value(name, getattr(args, name)) for name in CHANGES if getattr(args, name) is not None}
    private = private_of(None, args.validation)
    tale = Tale(changes, frozenset(args.without), private) if changes or args.without else None
    told, start = None, None
    for told in tell(args.state, private, args.until):
        if tale is not None:
            tale.take(told)
        if start is None and told.step.version >= 0:
            start = moved(told.state.coordinator)
    if told is None or told.state.coordinator is None:
        raise ConfigError(f"the journal in {args.state} holds nothing after its snapshot")
    _check_known(args.without, told.state.coordinator)
    _check_reached(args.until, told.state.coordinator)
    print(_verified(told))
    result = told.state.coordinator
    if tale is not None and tale.coordinator is not None:
        result = tale.coordinator
        print(_difference(told.state.coordinator, tale, start))
    if args.loss is not None:
        print(_losses(args.loss, told.state.coordinator, result))
    if args.compare is not None:
        print(_compared(tensors_of(result), read_tensors(args.compare), args.compare))
    if args.out is not None:
        write_tensors(args.out, tensors_of(result), result.run.version)
        print(f"wrote version {result.run.version} to {args.out}")
    return 1 if told.state.differing else 0


def _value(name: str, text: str) -> Any:
    return int(text) if name == "quorum" and text.isdigit() else text


def moved(coordinator: Coordinator | None) -> Tensor | None:
    """A copy of the published parameters."""
    store = coordinator.run.store if coordinator is not None else None
    return None if store is None else store.published.clone()


def _verified(told: Told) -> str:
    state = told.state
    version = state.coordinator.run.version if state.coordinator is not None else -1
    if state.differing:
        return f"DIFFERS from what was recorded: {state.differing}. Written on {state.machine}"
    return f"version {version} after record {state.number}: {state.verified} versions verified, all as recorded"


def _difference(recorded: Coordinator, tale: Tale, start: Tensor | None) -> str:
    assert tale.coordinator is not None
    ours, theirs = moved(tale.coordinator), moved(recorded)
    refused = ", ".join(f"{count} {reason}" for reason, count in tale.refused.most_common()) or "none"
    lines = [f"what if: {tale.coordinator!r}", f"took {tale.accepted} updates, refused: {refused}"]
    if ours is not None and theirs is not None and start is not None:
        lines += _ways(ours - theirs, theirs - start, ours - start)
    return "\n".join(lines)


def _losses(text: str, recorded: Coordinator, result: Coordinator) -> str:
    ours = _loss(text, result)
    return f"loss {ours:.6g}" if result is recorded else f"loss {ours:.6g}, of the recorded {_loss(text, recorded):.6g}"


def _loss(text: str, coordinator: Coordinator) -> float:
    from lightning_async.cli.owner import imported
    from lightning_async.server.history import tensors_of

    function = imported(text, "--loss")
    try:
        return float(function({name: tensor.clone() for name, tensor in tensors_of(coordinator).items()}))
    except Exception as error:  # whatever the user's function may raise
        raise ConfigError(f"--loss {text} failed on version {coordinator.run.version}: {error!r}") from error


def _ways(apart: Tensor, way: Tensor, own: Tensor) -> list[str]:
    """How far the result is from the recorded parameters, which went `way` while it went `own`; all [d]."""
    far, gone, moved_by = (math.sqrt(_dot(vector, vector)) for vector in (apart, way, own))
    share = f"{far / gone:.1%} of the way that these have gone" if gone else "which have not moved"
    lines = [f"{far:.4g} from the recorded parameters, {share}"]
    if gone and moved_by:
        cosine = max(-1.0, min(1.0, _dot(way, own) / (gone * moved_by)))
        return [*lines, f"cosine of the two ways: {cosine:.4f}"]
    return lines if moved_by else [*lines, "the what-if has not moved"]


def _dot(a: Tensor, b: Tensor) -> float:
    """The inner product, summed as float64, without a second vector of the model's size."""
    import torch

    parts = zip(torch.split(a, AT_ONCE), torch.split(b, AT_ONCE), strict=True)
    return math.fsum(float(x.double() @ y.double()) for x, y in parts)


def _check_known(names: Sequence[str], recorded: Coordinator) -> None:
    """Raises ConfigError for a worker that was never in the run: leaving it out would say that it did nothing."""
    known = [member.name for member in recorded.run.members]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"--without {', '.join(unknown)}: got no such worker; expected one of {', '.join(known)}")


def _check_reached(until: int | None, recorded: Coordinator) -> None:
    """Raises ConfigError for a version that the run never came to: what came before would be taken for it."""
    if until is not None and recorded.run.version < until:
        raise ConfigError(
            f"--until {until}: the recorded run ends at version {recorded.run.version}; give one up to it"
        )


def _compared(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], path: Path) -> str:
    both = [name for name in ours if name in theirs and theirs[name].shape == ours[name].shape]
    if not both:
        raise ConfigError(f"{path} has no tensor of this run: it has {', '.join(list(theirs)[:3])} ...")
    square = sum(float((ours[name].float() - theirs[name].float()).square().sum()) for name in both)
    largest = max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in both if ours[name].numel())
    return f"{math.sqrt(square):.4g} from {path} over {len(both)} of {len(ours)} tensors, {largest:.3g} at most"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a checkpoint's state_dict. Raises ConfigError."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    return dict(loaded.get("state_dict", loaded))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], version: int) -> None:
    """`tensors` as .safetensors, or under state_dict as a checkpoint reads them. Raises ConfigError."""
    import torch
    from safetensors.torch import save_file

    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file(whole, path, {"version": str(version)})
        else:
            torch.save({"state_dict": whole, "async_wan": {"version": version}}, path)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"cannot write {path}: {error}") from error
