"""Tensors over bytes and bytes over tensors, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_async.codecs.base import Payload


def as_payload(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous vector; on the CPU a view, which keeps the tensor's memory alive."""
    return tensor.detach().cpu().numpy().reshape(-1).view(np.uint8).data


def as_array(payload: Payload, dtype: str) -> np.ndarray[Any, np.dtype[Any]]:
    """The payload as numbers of `dtype`; its length must be a multiple of theirs. Read-only where the payload is."""
    return np.frombuffer(payload, dtype=dtype)


def as_tensor(array: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    """A tensor over the array's memory, which it keeps alive. Of read-only memory too: then it must not be written."""
    if not array.flags.aligned:
        array = array.copy()
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Shared(array)))


class _Shared:
    """Presents read-only memory as plain memory: torch knows no read-only tensors and would warn about each."""

    def __init__(self, array: np.ndarray[Any, np.dtype[Any]]) -> None:
        self.array = array
        interface = dict(array.__array_interface__)
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
