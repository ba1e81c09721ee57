"""Named tensors <-> the lists and payload frames of `Load` and `Moments`: how an optimizer's state travels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_async.errors import PayloadError
from lightning_async.wire.frames import Frame

DTYPES = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64}


def pack_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, list[Any]], tuple[Frame, ...]]:
    """The fields keys, shapes, dtypes, and one frame per tensor. Other dtypes travel as float32."""
    plain = {key: _plain(tensor) for key, tensor in tensors.items()}
    fields: dict[str, list[Any]] = {
        "keys": list(plain),
        "shapes": [list(tensor.shape) for tensor in plain.values()],
        "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in plain.values()],
    }
    return fields, tuple(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in plain.values())


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.dtype in DTYPES.values() else tensor.to(torch.float32)


def unpack_tensors(
    keys: Sequence[str], shapes: Sequence[Any], dtypes: Sequence[str], payload: Sequence[Frame]
) -> dict[str, Tensor]:
    """What `pack_tensors` packed. Raises PayloadError when the lists and the frames do not fit each other."""
    if not len(keys) == len(shapes) == len(dtypes) == len(payload):
        raise PayloadError(f"{len(keys)} keys, {len(shapes)} shapes, {len(dtypes)} dtypes, {len(payload)} frames")
    rows = zip(keys, shapes, dtypes, payload, strict=True)
    return {key: _read(key, shape, dtype, frame) for key, shape, dtype, frame in rows}


def read_floats(frame: Frame) -> Tensor:
    """A frame of float32 numbers [n], such as buffers, as they came; a copy, since they are few."""
    return (
        torch.frombuffer(bytearray(frame), dtype=torch.float32) if len(frame) else torch.empty(0, dtype=torch.float32)
    )


def _read(key: str, shape: Any, dtype: str, frame: Frame) -> Tensor:
    kind = DTYPES.get(dtype)
    known = isinstance(shape, list) and all(isinstance(n, int) and n >= 0 for n in shape)
    if kind is None or not known or math.prod(shape) * kind.itemsize != len(frame):
        raise PayloadError(f"tensor {key[:80]!r}: {str(shape)[:60]} {dtype[:20]} does not take {len(frame)} bytes")
    if not len(frame):
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray(frame), dtype=kind).reshape(shape)
