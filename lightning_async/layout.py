"""Named tensors <-> one flat float32 vector.

The layout of a run is the ordered list of what its workers share: first every trainable parameter (requires_grad,
tied weights once), then every floating-point buffer such as BatchNorm statistics. Parameters and buffers are two
vectors, because they are treated differently: parameters travel as updates and get the outer optimizer's step,
buffers travel as values and are averaged. Integer buffers and frozen parameters stay local.
The digest of the manifest is what both sides compare; when it differs, `difference` names the first tensor that does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_async.errors import LayoutError, PayloadError

LARGEST_ELEMENTS = 2**40
MOST_TENSORS = 100_000
KINDS = ("parameter", "buffer")
FSDP = "_fsdp_wrapped_module"  # stands in the name of every tensor that FullyShardedDataParallel has wrapped


@dataclass(frozen=True)
class Entry:
    """One tensor of the layout: `offset` counts elements inside the vector of its kind."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    offset: int

    @cached_property
    def size(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def range(self) -> slice:
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True)
class Layout:
    """The tensors of a run, in order. `d` parameters elements, `b` buffer elements."""

    entries: tuple[Entry, ...]

    @cached_property
    def parameters(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.kind == "parameter")

    @cached_property
    def buffers(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.kind == "buffer")

    @cached_property
    def d(self) -> int:
        return sum(entry.size for entry in self.parameters)

    @cached_property
    def b(self) -> int:
        return sum(entry.size for entry in self.buffers)

    def shapes(self, present: Sequence[int] | None = None) -> tuple[tuple[int, ...], ...]:
        """The shapes of the parameters, or of those with these indices, in order."""
        entries = self.parameters if present is None else [self.parameters[i] for i in present]
        return tuple(entry.shape for entry in entries)

    def fragments(self, count: int) -> tuple[tuple[int, ...], ...]:
        """The parameters in `count` pieces of about the same size: rising indices of each; () for one piece.

        Largest first, each into the piece that is smallest so far. Raises LayoutError for more pieces than parameters.
        """
        if count == 1:
            return ()
        sizes = [entry.size for entry in self.parameters]
        if count > len(sizes):
            raise LayoutError(
                f"fragments={count} of a model with {len(sizes)} trainable tensors; expected 1 to {len(sizes)}"
            )
        pieces: list[list[int]] = [[] for _ in range(count)]
        held = [0] * count
        for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            lightest = min(range(count), key=lambda k: (held[k], len(pieces[k]), k))
            pieces[lightest].append(index)
            held[lightest] += sizes[index]
        return tuple(tuple(sorted(piece)) for piece in pieces)

    def part(self, vector: Tensor, piece: Sequence[int]) -> Tensor:
        """What `vector` [d] holds of the parameters in `piece`, one after the other, a copy."""
        return torch.cat([vector[self.parameters[i].range] for i in piece])

    def spread(self, part: Tensor, piece: Sequence[int], out: Tensor, alpha: float | None = None) -> Tensor:
        """Put a `part` of the parameters in `piece` into `out` [d], or add `alpha` times it; returns `out`."""
        at = 0
        for i in piece:
            entry = self.parameters[i]
            own, at = part[at : at + entry.size], at + entry.size
            _ = out[entry.range].copy_(own) if alpha is None else out[entry.range].add_(own, alpha=alpha)
        return out

    @property
    def manifest(self) -> list[list[Any]]:
        """The layout as plain lists, [name, shape, dtype, kind] each: what Hello carries."""
        return [[entry.name, list(entry.shape), entry.dtype, entry.kind] for entry in self.entries]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the manifest's canonical JSON, 32 hex digits."""
        text = json.dumps(self.manifest, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Shared:
    """The live tensors behind a layout, in the layout's order. They are views of the model: writing trains it."""

    layout: Layout
    parameters: tuple[nn.Parameter, ...]
    buffers: tuple[Tensor, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.layout.parameters)


def shared_tensors(module: nn.Module) -> Shared:
    """What a run of `module` shares. Raises LayoutError when nothing is trainable or a tensor cannot travel."""
    parameters = [(_plain(name), p) for name, p in module.named_parameters() if p.requires_grad]
    buffers = list(_floating_buffers(module))
    if not parameters:
        raise LayoutError("the model has no parameter with requires_grad=True, so there is nothing to train together")
    for name, tensor in [*parameters, *buffers]:
        _check_travels(name, tensor)
    entries = [*_entries(parameters, "parameter"), *_entries(buffers, "buffer")]
    return Shared(Layout(tuple(entries)), tuple(p for _, p in parameters), tuple(t for _, t in buffers))


def _floating_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating buffers that are part of the state dict; non-persistent ones are scratch space and stay local."""
    persistent = {id(t) for t in module.state_dict(keep_vars=True).values()}
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and id(buffer) in persistent:
            yield _plain(name), buffer


def _plain(name: str) -> str:
    """The tensor's name in the module as it was written: compiled and plain workers have one layout."""
    return name.replace("_orig_mod.", "")


def _check_travels(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise LayoutError(f"{name!r} is lazy and has no shape yet; run one batch through the model first")
    if FSDP in name or type(tensor).__name__ == "DTensor":
        raise LayoutError(
            f"{name!r} is a shard, of FSDP or of a tensor that lies on several devices: a worker must hold its whole "
            "model; train it without sharding for now"
        )
    if tensor.device.type == "meta":
        raise LayoutError(f"{name!r} has no values yet: it lies on {tensor.device}; materialise the model first")
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        raise LayoutError(
            f"{name!r} has dtype {tensor.dtype}, layout {tensor.layout}; shared are dense floating tensors"
        )


def _entries(named: Iterable[tuple[str, Tensor]], kind: str) -> Iterator[Entry]:
    offset = 0
    for name, tensor in named:
        yield Entry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), kind, offset)
        offset += tensor.numel()


def read_manifest(manifest: Sequence[Any]) -> Layout:
    """The layout in a peer's manifest. Raises PayloadError for anything that is not one."""
    if not 0 < len(manifest) <= MOST_TENSORS:
        raise PayloadError(f"a manifest of {len(manifest)} tensors; 1 to {MOST_TENSORS} are read")
    offsets = dict.fromkeys(KINDS, 0)
    entries = []
    for row in manifest:
        entry = _read_row(row, offsets)
        offsets[entry.kind] += entry.size
        entries.append(entry)
    if sum(offsets.values()) > LARGEST_ELEMENTS:
        raise PayloadError(f"a manifest of {sum(offsets.values())} elements; at most {LARGEST_ELEMENTS} are allowed")
    if len({entry.name for entry in entries}) != len(entries) or not offsets["parameter"]:
        raise PayloadError("a manifest with a name twice, or without parameters")
    return Layout(tuple(entries))


def _read_row(row: Any, offsets: dict[str, int]) -> Entry:
    match row:
        case [str(name), list(shape), str(dtype), "parameter" | "buffer" as kind] if len(shape) <= 16:
            if all(isinstance(n, int) and 0 <= n <= LARGEST_ELEMENTS for n in shape):
                return Entry(name[:512], tuple(shape), dtype[:32], kind, offsets[kind])
    raise PayloadError(f"a manifest row must be [name, shape, dtype, kind]; got {str(row)[:120]}")


def difference(ours: Layout, theirs: Layout) -> str:
    """The first tensor in which `theirs` differs from `ours` (the run's), as a sentence; empty when they agree."""
    for mine, other in zip(ours.entries, theirs.entries, strict=False):
        if (mine.name, mine.kind) != (other.name, other.kind):
            return f"got {other.kind} {other.name!r} where this run has {mine.kind} {mine.name!r}"
        if (mine.shape, mine.dtype) != (other.shape, other.dtype):
            return (
                f"got {other.name!r} with shape {other.shape} {other.dtype}; "
                f"this run has shape {mine.shape} {mine.dtype}"
            )
    mine_only, other_only = ours.entries[len(theirs.entries) :], theirs.entries[len(ours.entries) :]
    if other_only:
        return f"got {other_only[0].kind} {other_only[0].name!r}, which this run does not have"
    return f"this run's {mine_only[0].kind} {mine_only[0].name!r} is missing" if mine_only else ""


def flatten(tensors: Sequence[Tensor], entries: Sequence[Entry], out: Tensor) -> Tensor:
    """Copy `tensors` into `out` (float32 [n], any device) at their entries' offsets; returns `out`."""
    for tensor, entry, place in zip(tensors, entries, split(out, entries), strict=True):
        place.view(entry.shape).copy_(tensor.detach())
    return out


def unflatten(vector: Tensor, entries: Sequence[Entry], tensors: Sequence[Tensor]) -> None:
    """Copy `vector` (float32 [n]) into `tensors`, cast to each tensor's dtype."""
    for tensor, entry, own in zip(tensors, entries, split(vector, entries), strict=True):
        tensor.data.copy_(own.view(entry.shape))


def split(vector: Tensor, entries: Sequence[Entry]) -> tuple[Tensor, ...]:
    """Views of `vector` [n], one for each of the entries, which fill it in their order."""
    return torch.split(vector, [entry.size for entry in entries]) if entries else ()
