"""What is shared of a model, in which order, and how a difference is named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from children import Children
from eventually import ENOUGH_S
from torch import nn

from lightning_async.errors import LayoutError, PayloadError
from lightning_async.layout import difference, flatten, read_manifest, shared_tensors, unflatten

SHARDED = Path(__file__).parent / "e2e" / "scripts" / "sharded.py"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.middle = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scratch", torch.zeros(3), persistent=False)


def test_parameters_first_then_floating_buffers_tied_once_frozen_and_scratch_never() -> None:
    shared = shared_tensors(Model())
    assert [(e.name, e.shape, e.kind, e.offset) for e in shared.layout.entries] == [
        ("embedding.weight", (5, 3), "parameter", 0),
        ("middle.0.weight", (4, 3), "parameter", 15),
        ("middle.0.bias", (4,), "parameter", 27),
        ("middle.1.weight", (4,), "parameter", 31),
        ("middle.1.bias", (4,), "parameter", 35),
        ("middle.1.running_mean", (4,), "buffer", 0),
        ("middle.1.running_var", (4,), "buffer", 4),
    ]
    assert (shared.layout.d, shared.layout.b) == (39, 8)
    assert shared.names[0] == "embedding.weight"


def test_flatten_and_unflatten_are_inverse() -> None:
    model, other = Model(), Model()
    shared, target = shared_tensors(model), shared_tensors(other)
    vector = flatten(shared.parameters, shared.layout.parameters, torch.empty(39))
    assert torch.equal(vector[:15].view(5, 3), model.embedding.weight)
    unflatten(vector, target.layout.parameters, target.parameters)
    assert all(torch.equal(a, b) for a, b in zip(shared.parameters, target.parameters, strict=True))
    assert other.head.weight is other.embedding.weight


def test_fragments_are_about_as_large_and_the_same_everywhere() -> None:
    layout = shared_tensors(Model()).layout
    assert layout.fragments(1) == ()
    assert layout.fragments(2) == ((0, 3), (1, 2, 4)), "15 + 4 and 12 + 4 + 4"
    assert layout.fragments(5) == ((0,), (1,), (2,), (3,), (4,))
    with pytest.raises(LayoutError, match="fragments=6 of a model with 5 trainable tensors"):
        layout.fragments(6)


def test_a_piece_is_taken_out_and_put_back() -> None:
    layout = shared_tensors(Model()).layout
    vector, out = torch.arange(39.0), torch.zeros(39)
    for piece in layout.fragments(3):
        layout.spread(layout.part(vector, piece), piece, out)
    assert torch.equal(out, vector)
    first = layout.fragments(3)[0]
    layout.spread(layout.part(vector, first), first, out, alpha=1.0)
    assert torch.equal(layout.part(out, first), 2 * layout.part(vector, first))


def test_other_dtypes_travel_as_float32_and_come_back_as_their_own() -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    shared = shared_tensors(model)
    vector = flatten(shared.parameters, shared.layout.parameters, torch.empty(8))
    unflatten(vector * 2, shared.layout.parameters, shared.parameters)
    assert model.weight.dtype == torch.bfloat16
    assert torch.equal(model.weight.float().reshape(-1), 2 * vector[:6])


def test_the_manifest_makes_the_same_layout_and_digest() -> None:
    layout = shared_tensors(Model()).layout
    again = read_manifest(layout.manifest)
    assert again == layout
    assert again.digest == layout.digest
    assert len(layout.digest) == 32
    assert shared_tensors(Model()).layout.digest == layout.digest


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "kind"])
def test_the_digest_notices(change: str) -> None:
    rows = [["w", [2, 3], "float32", "parameter"], ["v", [6], "float32", "parameter"]]
    other = {"name": "x", "shape": [3, 2], "dtype": "float16", "kind": "buffer"}[change]
    changed = [rows[0], [*rows[1]]]
    changed[1][["name", "shape", "dtype", "kind"].index(change)] = other
    assert read_manifest(rows).digest != read_manifest(changed).digest
    assert difference(read_manifest(rows), read_manifest(changed)) != ""


def test_differences_name_the_first_tensor() -> None:
    ours = read_manifest([["w", [2], "float32", "parameter"], ["v", [3], "float32", "parameter"]])
    longer = read_manifest([*ours.manifest, ["x", [1], "float32", "buffer"]])
    assert difference(ours, ours) == ""
    assert difference(ours, longer) == "got buffer 'x', which this run does not have"
    assert difference(longer, ours) == "this run's buffer 'x' is missing"
    reordered = read_manifest(ours.manifest[::-1])
    assert difference(ours, reordered) == "got parameter 'v' where this run has parameter 'w'"


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        ["w"],
        [["w", [2], "float32", "gradient"]],
        [["w", 2, "float32", "parameter"]],
        [["w", [2.0], "float32", "parameter"]],
        [["w", [-2], "float32", "parameter"]],
        [["w", [2**41], "float32", "parameter"]],
        [["w", [1] * 17, "float32", "parameter"]],
        [["w", [2**21, 2**21], "float32", "parameter"]],
        [["w", [0], "float32", "parameter"]],
        [["w", [2], "float32", "buffer"]],
        [["w", [2], "float32", "parameter"]] * 2,
    ],
)
def test_other_manifests_are_refused(manifest: list[object]) -> None:
    with pytest.raises(PayloadError):
        read_manifest(manifest)


def test_a_model_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(LayoutError, match="nothing to train"):
        shared_tensors(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(LayoutError, match="'weight' is lazy"):
        shared_tensors(nn.LazyLinear(2))
    with pytest.raises(LayoutError, match="meta"):
        shared_tensors(nn.Linear(2, 2, device="meta"))
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(LayoutError, match="complex64"):
        shared_tensors(model)


@pytest.mark.slow
def test_a_model_in_a_real_fsdp_is_refused_with_the_reason(children: Children) -> None:
    """In a process of its own: gloo leaves sockets behind."""
    process = children.start([sys.executable, "-W", "ignore", str(SHARDED)])
    out, _ = process.communicate(timeout=ENOUGH_S)
    assert process.returncode == 0, out
    said = dict(line.split(": ", 1) for line in out.splitlines())
    assert list(said) == ["flat", "original", "inside", "second"]
    for text in said.values():
        assert re.fullmatch(r"refused: '.*' is a shard, of FSDP.* train it without sharding for now", text), said
